import gzip
import json
import math

import pytest

from research.data.files import read_beir, read_records, read_sts


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, newline="")
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
        ("a.tsv", "x\tx\n1\t2\n", "a.tsv has two columns 'x'"),
        ("a.csv", 'x,y\n"1,2\n3,4\n', "a.csv line 3 is not CSV: unexpected end"),
        ("a.csv", "x,y\na\rb,c\n", "a.csv line 2 is not CSV"),
        ("a.jsonl", "[" * 100_000, "a.jsonl line 1 is not JSON"),
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
    with pytest.raises(ValueError, match='line 2: score is "high", not a number'):
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
    data = read_beir(beir, "test")
    assert data.corpus == {"d1": "T one", "d2": "two"}
    assert data.queries == {"q1": "first"}
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert not data.unknown_documents and not data.unknown_queries


def test_beir_errors(beir):
    with pytest.raises(FileNotFoundError, match="found lost.tsv.*, none.tsv"):
        read_beir(beir, "train")
    with pytest.raises(ValueError, match="'d9', none of which is in"):
        read_beir(beir, "lost")
    with pytest.raises(ValueError, match="holds no rows"):
        read_beir(beir, "none")


def make_beir(folder, qrels, corpus=(), queries=()):
    """A BEIR folder with the documents d1 and d2 and the query q."""
    corpus = [{"_id": "d1", "text": "one"}, {"_id": "d2", "text": ""}, *corpus]
    queries = [{"_id": "q", "text": " first "}, *queries]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        write(folder / f"{name}.jsonl", "\n".join(map(json.dumps, rows)))
    write(folder / "qrels/test.tsv", qrels)
    return folder


def test_judgments_with_and_without_a_header(tmp_path):
    rows = "q\td1\t1\nq\td2\t-1\n"
    for head in ("", "query-id\tcorpus-id\tscore\n"):
        data = read_beir(make_beir(tmp_path, head + rows), "test")
        assert data.qrels == {"q": {"d1": 1, "d2": -1}}
        assert data.corpus["d2"] == "" and data.queries["q"] == " first "


def test_judged_ids_that_are_not_there(tmp_path):
    qrels = "q\td1\t1\nq\tlost\t2\nnone\td1\t1\n"
    data = read_beir(make_beir(tmp_path, qrels), "test")
    assert data.qrels == {"q": {"d1": 1, "lost": 2}}
    assert data.unknown_documents == ("lost",) and data.unknown_queries == ("none",)


def test_a_repeated_text_or_judgment_is_one(tmp_path):
    again = {"_id": "d1", "title": None, "text": "one"}
    folder = make_beir(tmp_path, "q\td1\t1\nq\td1\t1.0\n", [again], [])
    assert list(read_beir(folder, "test").corpus) == ["d1", "d2"]


@pytest.mark.parametrize(
    "qrels, corpus, message",
    [
        ("q\td1\t0.5\n", {}, r"test.tsv line 1: the grade 0.5 is not a whole number"),
        ("q\td1\tnan\n", {}, r"line 1: the grade is \"nan\", not a finite number"),
        ("q\td1\t1\nq\td1\t2\n", {}, "line 2: document 'd1' has another grade"),
        ("q\t0\td1\t1\n", {}, "line 1 has 4 columns"),
        ("", {"_id": "d1", "text": "other"}, "line 3: another text has the _id 'd1'"),
        ("", {"_id": None, "text": "a"}, "line 3: _id is null, not a text"),
        ("", {"_id": 1.5, "text": "a"}, "line 3: _id is 1.5, not a text"),
        ("", {"_id": "x", "text": None}, "line 3: text is null, not a text"),
        ("", {"_id": "x", "text": ["a"]}, r"line 3: text is \[\"a\"\], not a text"),
        ("", {"_id": "x", "text": "a", "title": math.nan}, "title is NaN, not a text"),
        ("", {"_id": "x", "text": "a", "title": 0}, "title is 0, not a text"),
    ],
)
def test_bad_beir_rows_say_where_and_what(tmp_path, qrels, corpus, message):
    folder = make_beir(tmp_path, qrels or "q\td1\t1\n", [corpus] if corpus else ())
    with pytest.raises(ValueError, match=message):
        read_beir(folder, "test")


@pytest.mark.parametrize("value", ["null", "NaN", "7", '["a"]', "true", '{"a": "b"}'])
def test_a_value_of_another_type_is_never_a_text(tmp_path, value):
    good = {"sentence1": '"a"', "sentence2": '"b"', "score": "1"}
    for field in good:
        row = good | {field: value}
        if field == "score" and value in ("7", "true"):
            continue
        line = ", ".join(f'"{name}": {item}' for name, item in row.items())
        path = write(tmp_path / "a.jsonl", "{" + line + "}\n")
        with pytest.raises(ValueError, match=f"a.jsonl line 1: {field} is "):
            read_sts(path)
