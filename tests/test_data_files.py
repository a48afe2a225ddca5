import gzip

import pytest

from research.data.files import read_beir, read_records, read_sts


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize(
    "name, text",
    [
        ("a.jsonl", '{"x": "1", "y": "b \\"c"}\n\n{"x": "2", "y": "d, e"}\n'),
        ("a.tsv", 'x\ty\n1\tb "c\n\n2\td, e\n'),
        ("a.csv", 'x,y\r\n1,"b ""c"\r\n\r\n2,"d, e"\r\n'),
    ],
)
def test_records_of_every_format(tmp_path, name, text, zipped):
    path = write(tmp_path / (name + zipped), text)
    found = list(read_records(path))
    assert [record for _, record in found] == [
        {"x": "1", "y": 'b "c'},
        {"x": "2", "y": "d, e"},
    ]
    assert [line for line, _ in found] in ([1, 3], [2, 4])


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl line 1 is a JSON list, not an object"),
        ("a.jsonl", "\n", "a.jsonl is empty"),
        ("a.tsv", "x\ty\n", "a.tsv is empty"),
        ("a.tsv", "x\ty\n1\n", "a.tsv line 2 has 1 columns, the header has 2"),
        ("a.xml", "<a/>", "should end in .jsonl, .json, .tsv, .csv"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        list(read_records(write(tmp_path / name, text)))


def test_a_file_that_is_not_gzip_or_not_there(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as text"):
        list(read_records(tmp_path / "a.jsonl.gz"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        list(read_records(tmp_path / "b.jsonl"))


def test_sts_aliases_and_errors(tmp_path):
    good = write(tmp_path / "a.csv", "text1,text2,label\na,b,5\nc,d,0.5\n")
    assert read_sts(good) == (["a", "c"], ["b", "d"], [5.0, 0.5])
    bad = write(tmp_path / "b.csv", "sentence1,sentence2,score\na,b,high\n")
    with pytest.raises(ValueError, match="line 2: score 'high' is not a number"):
        read_sts(bad)
    other = write(tmp_path / "c.csv", "sentence1,other\na,b\n")
    with pytest.raises(
        ValueError, match="no column sentence2 .*found sentence1, other"
    ):
        read_sts(other)


@pytest.fixture(params=["", ".gz"])
def beir(tmp_path, request):
    zipped = request.param
    write(
        tmp_path / f"corpus.jsonl{zipped}",
        '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}\n',
    )
    write(
        tmp_path / f"queries.jsonl{zipped}",
        '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n',
    )
    head = "query-id\tcorpus-id\tscore\n"
    write(tmp_path / f"qrels/test.tsv{zipped}", f"{head}q1\td1\t2\nq1\td2\t0\n")
    write(tmp_path / f"qrels/lost.tsv{zipped}", f"{head}q1\td9\t1\n")
    write(tmp_path / f"qrels/none.tsv{zipped}", head)
    return tmp_path


def test_beir_folder(beir):
    corpus, queries, qrels = read_beir(beir, "test")
    assert corpus == {"d1": "T one", "d2": "two"}
    assert queries == {"q1": "first"}
    assert qrels == {"q1": {"d1": 2, "d2": 0}}


def test_beir_errors(beir):
    with pytest.raises(FileNotFoundError, match="found lost.tsv.*, none.tsv"):
        read_beir(beir, "train")
    with pytest.raises(ValueError, match="unknown document 'd9'"):
        read_beir(beir, "lost")
    with pytest.raises(ValueError, match="holds no rows"):
        read_beir(beir, "none")
