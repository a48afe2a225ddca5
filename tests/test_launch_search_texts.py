"""The texts of hits: read at their bytes, or in a pass over the corpus."""

import json

import numpy as np
import pytest

from launch.search_texts import find_texts, read_all_texts
from research.data.corpus import locate_texts, read_texts
from research.inference.index.shard_files import write_shard
from research.inference.index.vector_shards import COLUMNS

pytest.importorskip("pyarrow")
TEXTS = [f"text {i}" for i in range(9)]


def make_index(folder, files):
    """A folder of vectors of all texts, four in a shard."""
    (folder / "index").mkdir()
    located = list(locate_texts(files, read_texts(files)))
    manifest = {"texts": len(located), "shard_size": 4, "kind": "dense", "options": {}}
    manifest |= {"format": "parquet", "files": [{"path": str(file)} for file in files]}
    (folder / "index" / "manifest.json").write_text(json.dumps(manifest))
    count = -(-len(located) // 4)
    for number in range(count):
        part = located[4 * number : 4 * number + 4]
        rows = [(place, text.line, offset) for text, place, offset in part]
        write_shard(
            folder / "index" / f"vectors-{number:05}-of-{count:05}.parquet",
            np.zeros((len(part), 2), np.float32),
            [text.name for text, *_ in part],
            [text.text for text, *_ in part],
            dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)),
        )
    return folder / "index"


def write_corpus(folder):
    """A file of lines, and one of records."""
    lines, records = folder / "a.txt", folder / "b.jsonl"
    lines.write_text("\n".join(TEXTS[:5]))
    rows = [{"_id": f"n{i}", "text": TEXTS[i]} for i in range(5, 9)]
    records.write_text("\n".join(map(json.dumps, rows)))
    return lines, records


def test_texts_are_read_at_their_bytes(tmp_path):
    files = write_corpus(tmp_path)
    index = make_index(tmp_path, files)
    names, texts = find_texts(index, [0, 4, 5, 8])
    assert names == {0: "a.txt:1", 4: "a.txt:5", 5: "n5", 8: "n8"}
    assert texts == {i: TEXTS[i] for i in (0, 4, 5, 8)}
    assert read_all_texts(index) == TEXTS
    # What comes before is not read: it may be damaged.
    content = files[1].read_bytes()
    files[1].write_bytes(b"\xff" * 10 + content[10:])
    assert find_texts(index, [8])[1] == {8: TEXTS[8]}
    for old in (b"n8", TEXTS[8].encode()):
        files[1].write_bytes(content.replace(old, b"m" * len(old)))
        with pytest.raises(ValueError, match="b.jsonl line 4 has changed since"):
            find_texts(index, [8])


def test_texts_of_tables_are_found_in_a_pass(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("\n".join(["text", *TEXTS]))
    index = make_index(tmp_path, [table])
    assert find_texts(index, [1, 7])[1] == {1: TEXTS[1], 7: TEXTS[7]}
    table.write_text("\n".join(["_id,text", *(f"x,{text}" for text in TEXTS)]))
    with pytest.raises(ValueError, match="a.csv line 3 has changed since it was"):
        find_texts(index, [1])
    table.write_text("\n".join(["text", *TEXTS[:5]]))
    with pytest.raises(ValueError, match="a.csv lacks 1 texts that were embedded"):
        find_texts(index, [1, 7])
