"""Named columns, the usual ones in the plural, and the part that is held out."""

import json

import pytest

from research.data.columns import PARTS, parse_columns, select_part
from research.data.examples import Example
from research.data.files import read_records
from research.data.sources import SOURCES

load_files = SOURCES["files"]


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_named_columns_are_used_and_the_others_named(tmp_path):
    row = {"question": "a", "ok": ["b", "c"], "bad_1": "d", "bad_2": ["e"], "w": 0.5}
    path = jsonl(tmp_path / "a.jsonl", row | {"query": "no", "id": 1})
    columns = "query=question, positive=ok, negative=bad*, score=w"
    source = load_files(path=path, columns=columns)
    assert list(source.examples) == [Example("a", ("b", "c"), ("d", "e"), 0.5)]
    assert source.note == "not used: id, query"


@pytest.mark.parametrize(
    "text, message",
    [
        ("query", "columns: 'query' is not FIELD=COLUMN, with a field of query, pos"),
        ("query=a, pos=b", "'pos=b' is not FIELD=COLUMN"),
        ("query=", "'query=' is not FIELD=COLUMN"),
        ("query=a", "names no positive: where columns are named"),
    ],
)
def test_columns_that_are_no_columns(text, message):
    with pytest.raises(ValueError, match=message):
        parse_columns(text)


@pytest.mark.parametrize(
    "columns, message",
    [
        ("query=ask, positive=b", "line 1: no column ask; found a, b, c"),
        ("query=a, positive=b, negative=bad*", r"no column bad\*; found a, b, c"),
        ("query=a, positive=c", "line 1: c is 3, not a text"),
        ("query=a, positive=b, score=b", 'line 1: b is "y", not a number'),
    ],
)
def test_named_columns_that_a_file_lacks(tmp_path, columns, message):
    path = jsonl(tmp_path / "a.jsonl", {"a": "x", "b": "y", "c": 3})
    with pytest.raises(ValueError, match=message):
        load_files(path=path, columns=columns)


@pytest.mark.parametrize(
    "record, row",
    [
        ({"query": "a", "positives": ["b", "c"]}, Example("a", ("b", "c"))),
        ({"question": "a", "answers": ["b"]}, Example("a", ("b",))),
        ({"anchor": "a", "document": ["b"]}, Example("a", ("b",))),
        (
            {"query": "a", "passages": ["b"], "hard_negatives": ["c", "d"]},
            Example("a", ("b",), ("c", "d")),
        ),
    ],
)
def test_columns_in_the_plural(tmp_path, record, row):
    path = jsonl(tmp_path / "a.jsonl", record)
    assert list(load_files(path=path).examples) == [row]


def test_llama_index_file(tmp_path):
    content = {
        "queries": {"q1": "a", "q2": "b"},
        "corpus": {"d1": "c", "d2": "d"},
        "relevant_docs": {"q1": ["d2"], "q2": ["d1", "d2"]},
        "mode": "text",
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=4))
    rows = [Example("a", ("d",)), Example("b", ("c", "d"))]
    assert list(load_files(path=str(path)).examples) == rows
    path.write_text(json.dumps(content | {"corpus": {"d1": "c"}}))
    with pytest.raises(ValueError, match="the query 'q1' with .*'d2'.* corpus lack"):
        load_files(path=str(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_or_lines_in_a_json_file(tmp_path, indent):
    rows = [{"a": "1"}, {"a": "2"}]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=indent))
    jsonl(tmp_path / "lines.json", *rows)
    for name in ("list.json", "lines.json"):
        assert [row for _, row in read_records(tmp_path / name)] == rows


def test_the_held_out_part_shares_no_query_and_does_not_depend_on_the_order():
    rows = [Example(f"q{i // 2}", (f"d{i}",)) for i in range(60)]
    train, held_out = (select_part(rows, part, "x") for part in PARTS[1:])
    assert sorted(train + held_out) == sorted(rows)
    assert len({e.query for e in held_out}) == 3  # a tenth of 30
    assert not {e.query for e in train} & {e.query for e in held_out}
    assert set(select_part(rows[::-1], "held_out", "x")) == set(held_out)
    assert select_part(rows, "all", "x") is rows


@pytest.mark.parametrize(
    "part, message",
    [
        ("dev", "part is 'dev'; allowed: all, train, held_out"),
        ("train", "a.jsonl has one query, of which no part can be held out"),
    ],
)
def test_parts_that_are_not_there(part, message):
    with pytest.raises(ValueError, match=message):
        select_part([Example("a", ("b",))], part, "a.jsonl")
