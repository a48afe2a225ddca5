"""A shard of vectors as files: .npy with a .jsonl of ids beside it, or one .parquet."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from types import ModuleType
from typing import Any

import numpy as np

from research.atomic_write import atomic_write, to_json
from research.inference.embedder import Embeddings
from research.inference.index.quantized_vectors import QuantizedVectors
from research.inference.similarity import embedding_kind
from research.text.tokenization import hash_texts
from research.types import MultiVectors

# Rows that are read at a time from a .parquet file, where few of them are needed.
ROWS_PER_GROUP = 4_096


class ParquetVectors:
    """The column "vector" of a .parquet file; a slice or numbers read these rows alone.

    Args:
        path: The file.
    """

    ndim = 2

    def __init__(self, path: Path):
        pq = import_pyarrow()
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            kind = self._file.schema_arrow.field("vector").type
            self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
            self.shape = self._file.metadata.num_rows, kind.list_size
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no file of vectors: {error}") from None
        groups = range(self._file.num_row_groups)
        counts = (self._file.metadata.row_group(i).num_rows for i in groups)
        self._first = np.cumsum([0, *counts])  # [groups + 1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        if not len(rows):
            return np.empty((0, self.shape[1]), self.dtype)
        # The groups that hold one of the rows, and where they then begin
        groups = np.unique(np.searchsorted(self._first, rows, side="right") - 1)
        table = self._file.read_row_groups(groups.tolist(), columns=["vector"])
        sizes = np.diff(self._first)[groups]
        begin = np.zeros(len(self._first), np.int64)
        begin[groups] = np.cumsum(sizes) - sizes
        group = np.searchsorted(self._first, rows, side="right") - 1
        column = table["vector"].combine_chunks()
        vectors = column.flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(-1, self.shape[1])  # [n, W]
        return vectors[begin[group] + rows - self._first[group]]


def open_shard(path: Path) -> np.ndarray | ParquetVectors:
    """The vectors or codes [N, W] of a file, which stay on disk.

    Raises:
        ValueError: It holds no such array.
    """
    if path.suffix == ".parquet":
        return ParquetVectors(path)
    try:
        shard = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, SyntaxError, TokenError) as error:
        raise ValueError(f"{path} is no file of vectors: {error}") from None
    if shard.ndim != 2:
        raise ValueError(f"{path} holds {shard.dtype} {shard.shape}, not vectors")
    return shard


def write_shard(
    path: Path,
    embeddings: Embeddings,
    names: Sequence[str],
    texts: Sequence[str],
    columns: Mapping[str, Sequence[int]] | None = None,
) -> int:
    """Writes vectors or codes with the ids of their rows; returns their number.

    A .npy file has a .ids.jsonl file of the same name beside it, whose line i tells of
    row i: the id of its text and the text's hash or, for chunks, the text's index in
    the shard and its characters [start, end). For vectors of tokens a line tells of a
    text: its id, its hash and its number of vectors. A .parquet file has a column for
    each of them beside "vector", and the text's index for vectors of tokens, too.

    Args:
        path: The file, whose ending is its format.
        embeddings: Vectors of N texts, of their chunks or tokens, or a SciPy CSR array;
            codes are written as such.
        names: N ids.
        texts: N texts.
        columns: Further numbers of the N texts.
    """
    columns = {name: np.asarray(values) for name, values in (columns or {}).items()}
    rows = {"id": list(names), "hash": format_hashes(texts), **columns}
    vectors = embeddings
    if isinstance(embeddings, MultiVectors):
        vectors = embeddings.vectors
        has_row_per_text = embeddings.start is None and path.suffix != ".parquet"
        if has_row_per_text:
            rows["vectors"] = np.diff(embeddings.offsets)
        else:
            numbers = embeddings.text_numbers
            rows = {"id": [names[i] for i in numbers]}
            rows |= {name: values[numbers] for name, values in columns.items()}
            rows["text"] = numbers
        if embeddings.start is not None:
            rows |= {"start": embeddings.start, "end": embeddings.end}
    if isinstance(vectors, QuantizedVectors):
        vectors = vectors.codes
    if path.suffix == ".parquet":
        _write_parquet(path, vectors, rows)
        return len(vectors)
    # The vectors come last: where they are, the ids are, too.
    lines = (
        to_json(dict(zip(rows, row, strict=True)), ensure_ascii=False) + "\n"
        for row in zip(*(_to_list(values) for values in rows.values()), strict=True)
    )
    with (
        atomic_write(get_ids_path(path)) as draft,
        open(draft, "w", encoding="utf-8") as f,
    ):
        f.writelines(lines)
    with atomic_write(path) as draft:
        if embedding_kind(vectors) == "sparse":
            from scipy.sparse import save_npz

            save_npz(draft, vectors)
        else:
            np.save(draft, vectors)
    return vectors.shape[0]


def format_hashes(texts: Iterable[str]) -> list[str]:
    """The hashes of texts as a shard's rows have them: 16 hexadecimal digits each."""
    return [f"{low:08x}{high:08x}" for low, high in hash_texts(texts).tolist()]


def get_ids_path(path: Path) -> Path:
    """The file of the ids of a .npy file of vectors."""
    return path.with_suffix(".ids.jsonl")


def read_rows(path: Path, numbers: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields what a shard's file has of each row besides its vector.

    Args:
        path: The shard.
        numbers: Names of numbers that every row must have, besides its id.

    Raises:
        ValueError: A row is damaged.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path, numbers)
        return
    file = get_ids_path(path)
    for line, text in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(text)
            valid = isinstance(row["id"], str) and all(
                type(row[n]) is int for n in numbers
            )
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise ValueError(f"{file} line {line} is damaged: it names no text")
        yield row


def import_pyarrow() -> ModuleType:
    """The package pyarrow.parquet, which is not among the required ones.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("this needs pyarrow: `pip install pyarrow`") from None
    return pyarrow.parquet


def _write_parquet(path: Path, vectors: np.ndarray, rows: Mapping[str, Any]) -> None:
    pq = import_pyarrow()
    import pyarrow as pa

    vectors = np.ascontiguousarray(vectors)
    # A list of fixed size in the Arrow schema, as LanceDB and others need it
    values = pa.array(vectors.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    table = pa.table({**{k: _to_list(v) for k, v in rows.items()}, "vector": column})
    # Compression saves nothing on vectors, and statistics of theirs say nothing
    with atomic_write(path) as draft:
        pq.write_table(
            table,
            draft,
            row_group_size=ROWS_PER_GROUP,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
        )


def _read_parquet(path: Path, numbers: Iterable[str]) -> Iterator[dict[str, Any]]:
    pq = import_pyarrow()
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name != "vector"]
            if missing := {"id", *numbers} - set(names):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for batch in file.iter_batches(columns=names):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _to_list(values: Any) -> list:
    return np.asarray(values).tolist() if not isinstance(values, list) else values
