"""An approximate index over a folder of vectors, on one host, by faiss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from research.atomic_write import atomic_write, read_json, write_json
from research.inference.index.quantized_vectors import rescore_candidates
from research.inference.index.vector_shards import ShardedVectors
from research.transforms.codebooks import import_faiss
from research.transforms.normalize import l2_normalize_rows
from research.transforms.quantization import BinaryQuantizer

INDEX, SETTINGS = "index.faiss", "index.json"
MAX_SAMPLE = 262_144  # vectors that an index is trained on
_ROWS_PER_STEP = 65_536


def build_index(
    folder: Path,
    vectors: ShardedVectors,
    factory: str,
    *,
    similarity: str = "cosine",
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> bool:
    """Builds an index over the vectors of a folder, unless it is there.

    The index is in memory while it is built; of the vectors, a block is. With several
    threads, faiss does not build the same HNSW graph again: OMP_NUM_THREADS=1 does.

    Args:
        folder: The folder, in which index.faiss and index.json are written.
        vectors: Its vectors. Of binary codes, a binary index is built.
        factory: The index as faiss names it: "Flat", "IVF1024,Flat", "HNSW32",
            "OPQ96,PQ96x8", or for binary codes "BFlat", "BHNSW32", "BIVF1024".
        similarity: "cosine" or "dot".
        seed: Seed of the sample that the index is trained on.
        log: Function that is called with a line of text.

    Returns:
        Whether the index was built now.

    Raises:
        ValueError: faiss is not installed, has no such index, or cannot train it.
    """
    settings = {
        "factory": factory,
        "similarity": similarity,
        "vectors": len(vectors),
        "seed": seed,
    }
    if read_json(folder / SETTINGS, missing={}) == settings and (
        (folder / INDEX).is_file()
    ):
        return False
    # The settings come last: where they are, the index is theirs.
    (folder / SETTINGS).unlink(missing_ok=True)
    is_binary = isinstance(vectors.quantizer, BinaryQuantizer)
    index = _make_index(factory, vectors, is_binary)
    read = _make_reader(vectors, similarity == "cosine", is_binary)
    if not index.is_trained:
        numbers = np.arange(len(vectors))
        if len(numbers) > MAX_SAMPLE:
            numbers = np.random.default_rng(seed).permutation(numbers)[:MAX_SAMPLE]
        log(f"training {factory} on {len(numbers):,} vectors")
        _call_faiss(factory, index.train, read(np.sort(numbers)))
    # Vectors are added block by block
    for start in range(0, len(vectors), _ROWS_PER_STEP):
        stop = min(start + _ROWS_PER_STEP, len(vectors))
        _call_faiss(factory, index.add, read(slice(start, stop)))
        log(f"{factory}: {stop:,} of {len(vectors):,} vectors")
    faiss = import_faiss()
    write = faiss.write_index_binary if is_binary else faiss.write_index
    with atomic_write(folder / INDEX) as draft:
        write(index, str(draft))
    write_json(folder / SETTINGS, settings)
    return True


def has_index(folder: Path) -> bool:
    """Whether a folder of vectors has an index of `build_index`."""
    return (folder / SETTINGS).is_file()


def search_index(
    folder: Path,
    queries: np.ndarray,
    vectors: ShardedVectors,
    k: int,
    *,
    similarity: str = "cosine",
    options: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """The k best vectors of a folder for each query, as its index finds them.

    Candidates of a binary index are ranked by the queries' own values.

    Args:
        folder: The folder.
        queries: [Q, D] float32.
        vectors: The vectors of the folder.
        k: Number of vectors per query.
        similarity: How the queries are compared: that of the index.
        options: Parameters of the search as faiss names them: "nprobe=16" of IVF, or
            "efSearch=64" of HNSW.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and numbers of vectors. faiss
        may find fewer; the missing ones have number -1 and score -inf.

    Raises:
        ValueError: The index is damaged, or was built for other vectors or another
            similarity; or it has no such parameter.
    """
    # The index, if it is that of these vectors
    faiss = import_faiss()
    settings = read_json(folder / SETTINGS)
    expected = {"similarity": similarity, "vectors": len(vectors)}
    for name, value in expected.items():
        if settings.get(name) != value:
            raise ValueError(
                f"{folder / INDEX} was built for {name} {settings.get(name)!r}, not "
                f"{value!r}; launch.index builds it again"
            )
    quantizer = vectors.quantizer
    is_binary = isinstance(quantizer, BinaryQuantizer)
    read = faiss.read_index_binary if is_binary else faiss.read_index
    try:
        index = read(str(folder / INDEX))
    except RuntimeError as error:
        raise ValueError(f"{folder / INDEX} is damaged: {_shorten(error)}") from None
    _set_options(index, options, is_binary)
    # Codes find candidates by their bits: [Q, count]
    k = min(k, len(vectors))
    if is_binary:
        codes = quantizer.encode(queries)
        count = min(k * max(quantizer.rescore, 1), len(vectors))
        _, candidates = index.search(codes, count)
    # Queries as they are compared with decoded vectors
    if quantizer is not None:
        queries = quantizer.center_queries(queries)
    if similarity == "cosine":
        queries = l2_normalize_rows(queries)
    if is_binary:
        return rescore_candidates(
            queries, vectors, candidates, k, normalize=similarity == "cosine"
        )
    scores, numbers = index.search(np.ascontiguousarray(queries, np.float32), k)
    return np.where(numbers < 0, -np.inf, scores).astype(np.float32), numbers


def _make_index(factory: str, vectors: ShardedVectors, is_binary: bool) -> Any:
    """An empty index.

    Raises:
        ValueError: faiss has no such index.
    """
    faiss = import_faiss()
    width = vectors.shape[1]
    try:
        # faiss counts the padding of the last byte, too
        if is_binary:
            bits = 8 * vectors.read_codes(slice(1)).shape[1]
            return faiss.index_binary_factory(bits, factory)
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        kind = "binary index" if is_binary else "index"
        raise ValueError(
            f"faiss has no {kind} {factory!r} of width {width}: {_shorten(error)}"
        ) from None


def _make_reader(
    vectors: ShardedVectors, normalize: bool, is_binary: bool
) -> Callable[[slice | np.ndarray], np.ndarray]:
    """Makes a function that reads rows as faiss takes them."""

    def read(rows):
        is_range = isinstance(rows, slice)
        if is_binary:
            codes = vectors.read_codes(rows) if is_range else vectors.take_codes(rows)
            return np.ascontiguousarray(codes)
        # Vectors, or what codes stand for: [n, D]
        x = vectors[rows] if is_range else vectors.take(rows)
        x = l2_normalize_rows(x) if normalize else x
        return np.ascontiguousarray(x, np.float32)

    return read


def _set_options(index: Any, options: str, is_binary: bool) -> None:
    """Sets parameters of a search, "name=value,name=value"."""
    for option in filter(None, options.replace(" ", "").split(",")):
        name, _, value = option.partition("=")
        try:
            if not is_binary:
                space = import_faiss().ParameterSpace()
                space.set_index_parameter(index, name, float(value))
                continue
            # faiss has no such setter for binary indexes
            owner = index if hasattr(index, name) else index.hnsw
            if not hasattr(owner, name):
                raise ValueError(name)
            setattr(owner, name, int(value))
        except (RuntimeError, ValueError, AttributeError):
            raise ValueError(
                f"this index has no parameter {option!r}; write nprobe=16 for IVF, or "
                "efSearch=64 for HNSW"
            ) from None


def _call_faiss(factory: str, function: Callable[[np.ndarray], None], x) -> None:
    try:
        function(x)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot build {factory} of {len(x):,} vectors: {_shorten(error)}"
        ) from None


def _shorten(error: Exception) -> str:
    """The sentence of faiss's error, without where it was raised."""
    return str(error).split("\n")[0].rpartition("Error: ")[2].strip()
