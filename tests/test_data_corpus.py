import csv
import gzip
import json

import pytest

from research.data.corpus import (
    describe_corpus,
    find_corpus,
    locate_texts,
    read_corpus,
    read_example_texts,
    read_text_at,
    read_texts,
)


def test_lines_in_order(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n two \r\nthree\rstill three")
    assert read_corpus(path) == (
        ["1", "2", "3"],
        ["one", " two ", "three\rstill three"],
    )


def test_a_text_is_read_alone(tmp_path):
    plain, records = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes("\ufeffone\n tw\u00f6 \r\nthree\rstill three".encode())
    lines = [{"_id": "x", "title": "T", "text": "a"}, {"text": "\u00e4b"}]
    records.write_text("\n\n".join(json.dumps(x, ensure_ascii=False) for x in lines))
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("packed")
    files = [plain, records, tmp_path / "c.txt.gz"]
    located = list(locate_texts(files, read_texts(files)))
    assert [text for text, _, _ in located] == list(read_texts(files))
    assert [number for _, number, _ in located] == [0, 0, 0, 1, 1, 2]
    offsets = [offset for *_, offset in located]
    assert offsets == [0, 7, 15, 0, 41, -1]
    for text, number, offset in located[:-1]:
        again = read_text_at(files[number], text.line, offset)
        assert again.text == text.text and again.place == text.place
        assert again.name == ("x" if text.name == "x" else "")
    # A file that has changed has no text there, or another one.
    records.write_text("[]")
    for path, offset in ((records, 0), (records, 41)):
        with pytest.raises(ValueError, match="line 1 has changed since it was"):
            read_text_at(path, 1, offset)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_text_at(tmp_path / "gone.txt", 1, 0)


def test_beir_folder_gzipped(tmp_path):
    rows = [{"_id": "x", "title": "T", "text": "a"}, {"_id": "y", "text": "b"}]
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    assert read_corpus(tmp_path) == (["x", "y"], ["T a", "b"])


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "\n \n", "a.txt has blank lines only"),
        ("a.jsonl", '{"body": "x"}\n', "line 1: no column text; found body"),
        ("a.jsonl", '{"text": ""}\n', "line 1: text is empty"),
        ("a.jsonl", '{"text": null}\n', "line 1: text is null, not a text"),
        ("a.jsonl", '{"text": NaN}\n', "line 1: text is NaN, not a text"),
        ("a.jsonl", '{"title": "", "text": " "}', "line 1: text is empty"),
        ("a.jsonl", '{"_id": null, "text": "x"}', "_id is null, not a text or a whole"),
        ("a.jsonl", '{"text": "\\ud83d"}', "line 1: text is not valid Unicode"),
        ("a.jsonl", '{"title": 3, "text": "x"}', "line 1: title is 3, not a text"),
        ("latin.txt", b"the house\ncaf\xe9\n", "latin.txt cannot be read as text"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path / name)


def test_texts_are_as_they_are_in_the_file(tmp_path):
    texts = [" a \r b\n", "\u2028x\x0b\x85", "'\t' and \"q\" "]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), newline="")
    assert read_corpus(tmp_path / "a.jsonl")[1] == texts
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    assert read_corpus(tmp_path / "a.csv")[1] == texts
    (tmp_path / "a.tsv").write_text('text\n a "b\rc \r\n', newline="")
    assert read_corpus(tmp_path / "a.tsv")[1] == [' a "b\rc ']


def test_blank_lines_of_text_files_are_no_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\none\n \n\ntwo\r\n")
    assert read_corpus(path) == (["2", "5"], ["one", "two"])
    # Where each line has its vector, none may be left out.
    with pytest.raises(ValueError, match="a.txt line 1: text is empty"):
        list(read_texts([path]))


def test_empty_texts_are_read_where_they_may_be(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"title": "", "text": " "}\n{"text": "a"}\n')
    assert [text.text for text in read_texts([path], allow_blank=True)] == [
        "",
        " ",
        "a",
    ]
    assert describe_corpus([path], allow_blank=True)[0]["texts"] == 3
    with pytest.raises(ValueError, match="a.jsonl line 1: text is empty"):
        describe_corpus([path])


def test_texts_of_several_files_are_named_by_file_and_line(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("one\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"_id": "q", "text": "three"}\n{"text": "4"}')
    files = find_corpus([tmp_path / "b" / "*.txt", tmp_path / "a.jsonl"])
    texts = list(read_texts(files))
    assert [text.name for text in texts] == ["b/x.txt:1", "b/x.txt:2", "q", "a.jsonl:2"]
    assert texts[1].place == f"{files[0]} line 2"
    with pytest.raises(ValueError, match=r"x.txt is named twice"):
        find_corpus([files[0], tmp_path / "b" / "*"])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*\*.csv"):
        find_corpus([tmp_path / "*.csv"])


def test_a_corpus_is_described_by_its_texts(tmp_path):
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text('{"text": "one"}\n{"text":  "two"}\n')
    with gzip.open(packed, "wt") as file:
        file.write('{"text": "one"}\n{"text": "two"}\n')
    same, other = describe_corpus([plain, packed])
    assert same["texts"] == 2 and same["digest"] == other["digest"]
    plain.write_text('{"text": "one"}\n{"text": "tw"}\n{"text": "o"}\n')
    assert describe_corpus([plain])[0]["digest"] != same["digest"]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_field_may_be_a_long_document(tmp_path, name):
    (tmp_path / name).write_text("text\n" + "the old house " * 10_000 + "\na b\n")
    assert [len(text) for text in read_corpus(tmp_path / name)[1]] == [140_000, 3]


def test_examples_give_the_texts_of_a_role_once(tmp_path):
    rows = [
        {"query": "q", "positive": "a", "negative": ["b", "c"]},
        {"query": "q", "positive": "c", "negative": ["d"]},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    queries, documents = (
        [(text.name, text.text) for text in read_example_texts([path], role)]
        for role in ("query", "document")
    )
    assert queries == [("train.jsonl:1.0", "q")]
    assert [text for _, text in documents] == ["a", "b", "c", "d"]
    assert documents[-1][0] == "train.jsonl:2.1"
    (described,) = describe_corpus(
        [path], read=lambda files: read_example_texts(files, "document")
    )
    assert described["texts"] == 4
