"""Shards as Parquet: their columns, their types, and rows read alone."""

import sys

import numpy as np
import pytest

from research.inference.index import shard_files
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.shard_files import open_shard, read_rows, write_shard
from research.text.tokenization import hash_texts
from research.transforms.pipeline import fit_transform
from research.types import MultiVectors

pq = pytest.importorskip("pyarrow.parquet")
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 12)).astype(np.float32)
NAMES = [f"n{i}" for i in range(300)]
HASHES = [f"{low:08x}{high:08x}" for low, high in hash_texts(NAMES).tolist()]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(shard_files, "ROWS_PER_GROUP", 64)


def test_rows_are_read_alone(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"line": range(1, 301), "offset": [7 * i for i in range(300)]}
    assert write_shard(path, X, NAMES, NAMES, columns) == 300
    shard = open_shard(path)
    assert shard.shape == (300, 12) and shard.dtype == np.float32
    for rows in (slice(0, 300), slice(60, 70), slice(299, 400), slice(5, 5)):
        np.testing.assert_array_equal(shard[rows], X[rows])
    numbers = np.array([0, 63, 64, 200, 299])
    np.testing.assert_array_equal(shard[numbers], X[numbers])
    np.testing.assert_array_equal(shard[np.array([130])], X[[130]])
    rows = list(read_rows(path))
    assert rows[9] == {"id": "n9", "hash": HASHES[9], "line": 10, "offset": 63}
    assert len(rows) == 300


def test_a_database_reads_a_list_of_fixed_size(tmp_path):
    path = tmp_path / "a.parquet"
    write_shard(path, X, NAMES, NAMES)
    table = pq.read_table(path)
    assert table.column_names == ["id", "hash", "vector"]
    kind = table.schema.field("vector").type
    assert str(kind.value_type) == "float" and kind.list_size == 12
    assert table["id"].to_pylist() == NAMES
    assert pq.ParquetFile(path).num_row_groups == 5


@pytest.mark.parametrize(
    "text, dtype, width",
    [
        ("int8", np.int8, 12),
        ("uint8", np.uint8, 12),
        ("float16", np.float16, 12),
        ("bfloat16", np.uint16, 12),
        ("float8", np.uint8, 12),
        ("binary", np.uint8, 2),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_codes_have_their_own_types(text, dtype, width, ending, tmp_path):
    quantizer = fit_transform(text, X, normalize=False).quantizer
    write_shard(tmp_path / f"a.{ending}", store_vectors(X, quantizer), NAMES, NAMES)
    shard = open_shard(tmp_path / f"a.{ending}")
    assert shard.dtype == dtype and shard.shape == (300, width)
    np.testing.assert_array_equal(shard[10:90], quantizer.encode(X)[10:90])


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_chunks_have_their_texts_and_characters(ending, tmp_path):
    numbers = np.repeat(np.arange(100), 3)
    chunks = MultiVectors(X, np.arange(0, 301, 3), numbers * 2, numbers * 2 + 5)
    columns = {"line": np.arange(100) + 1}
    path = tmp_path / f"a.{ending}"
    write_shard(path, chunks, NAMES[:100], NAMES[:100], columns)
    rows = list(read_rows(path, ("text", "start", "end")))
    assert rows[4] == {"id": "n1", "line": 2, "text": 1, "start": 2, "end": 7}
    np.testing.assert_array_equal(open_shard(path)[0:300], X)


def test_vectors_of_tokens_have_their_texts(tmp_path):
    tokens = MultiVectors(X, np.arange(0, 301, 3))
    write_shard(tmp_path / "a.npy", tokens, NAMES[:100], NAMES[:100])
    write_shard(tmp_path / "a.parquet", tokens, NAMES[:100], NAMES[:100])
    assert list(read_rows(tmp_path / "a.npy"))[1] == {
        "id": "n1",
        "hash": HASHES[1],
        "vectors": 3,
    }
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert rows[4] == {"id": "n1", "text": 1} and len(rows) == 300


def test_equal_vectors_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.parquet", X, NAMES, NAMES)
    a, b = ((tmp_path / f"{name}.parquet").read_bytes() for name in "ab")
    assert a == b


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match=f"{path} is no file of vectors"):
        open_shard(path)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        list(read_rows(path))
    write_shard(path, X, NAMES, NAMES)
    with pytest.raises(ValueError, match="is damaged: no column end, start"):
        list(read_rows(path, ("start", "end")))


def test_without_pyarrow_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="`pip install pyarrow`"):
        write_shard(tmp_path / "a.parquet", X, NAMES, NAMES)
