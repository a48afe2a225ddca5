import gzip
import json

import pytest

from research.data.corpus import read_corpus


def test_lines_in_order(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n two \n")
    assert read_corpus(path) == (["1", "2"], ["one", "two"])


def test_beir_folder_gzipped(tmp_path):
    rows = [{"_id": "x", "title": "T", "text": "a"}, {"_id": "y", "text": "b"}]
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    assert read_corpus(tmp_path) == (["x", "y"], ["T a", "b"])


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "one\n\n", "line 2 is empty"),
        ("a.jsonl", '{"body": "x"}\n', "line 1: no text; found body"),
        ("a.jsonl", '{"text": ""}\n', "line 1 is empty"),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path / name)
