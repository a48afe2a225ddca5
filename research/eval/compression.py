"""Quality, bytes and latency of compressed embeddings.

Each transform is scored at each depth and width on the same items as the embeddings of
full size in float32, so that every loss comes with its significance. Transforms are
fitted once, to documents, and not per query or per part of the corpus.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from research.eval.comparison.significance import apply_corrections, compare_items
from research.eval.vector_cache import VectorCache, cut_to_size
from research.inference.index.quantized_vectors import store_vectors
from research.inference.search import rank_documents
from research.transforms.normalize import l2_normalize_rows
from research.transforms.pipeline import VectorTransform, fit_transform
from research.types import EmbedFn, Evaluator, TaskScores

NONE = "none"  # no transform: float32
MAX_SAMPLE = 100_000  # documents that a transform is fitted to
HITS = 10  # of the searches whose latency and recall are measured
RESAMPLES = 1_999  # of a comparison, of which there may be hundreds
TIMED_TURNS = 5  # of each search, after one that compiles


class CompressedScore(NamedTuple):
    """A transform at a depth and a width.

    Attributes:
        transform: What is fitted, such as "pca(128) | int8()"; NONE for nothing.
        depth: Number of blocks.
        dim: Width before the transform.
        score: Main score in percent.
        difference: Score minus that of full size in float32.
        low: Lower end of its 95 % interval.
        high: Upper end of the interval.
        p_value: Two-sided p of the difference, corrected by Holm for all rows; None if
            the score is not made of single items.
        bytes_per_vector: Bytes of a stored vector.
        fixed_bytes: Bytes of matrices, ranges and codebooks, once for all vectors.
        recall: Percent of the HITS documents that the full size in float32 finds for a
            query that are found, too; None for a task without documents.
        milliseconds: Median of the milliseconds to search all documents for one query;
            None for a task without documents.
        is_best: Whether no row has at least its score in fewer bytes.
    """

    transform: str
    depth: int
    dim: int
    score: float
    difference: float
    low: float
    high: float
    p_value: float | None
    bytes_per_vector: int
    fixed_bytes: int
    recall: float | None = None
    milliseconds: float | None = None
    is_best: bool = False


def compression_study(
    evaluator: Evaluator,
    embed_all_depths: EmbedFn,
    transforms: Sequence[str],
    *,
    depths: Sequence[int],
    dims: Sequence[int],
    normalize: bool = True,
    similarity: str = "cosine",
    sample: Sequence[str] = (),
    log: Callable[[str], None] = lambda line: None,
) -> list[CompressedScore]:
    """Scores every transform at every depth and width; texts are embedded only once.

    A search stores its documents alone, and queries keep their own values; other tasks
    compare texts that are all stored.

    Args:
        evaluator: Evaluator of an EmbedFn.
        embed_all_depths: Function (texts, role) -> [N, depths, D], vectors that are not
            normalized.
        transforms: Transforms as text; NONE is always there, first.
        depths: Numbers of blocks, the full depth last.
        dims: Widths, the full width last.
        normalize: Whether vectors are scaled to length 1 before they are stored.
        similarity: How searches compare vectors.
        sample: Texts that the transforms are fitted to; without any, the documents of
            the task, or all its texts if it has none.
        log: Function that is called with a line of text per row.

    Raises:
        ValueError: A transform does not fit the full width.
    """
    vectors = VectorCache(embed_all_depths)
    names = list(dict.fromkeys((NONE, *transforms)))
    # The full size in float32 comes first: all else is compared with it
    full = cut_to_size(vectors, len(depths) - 1, dims[-1], normalize=False)
    baseline = evaluator(_make_store(full, None, normalize, ()))
    texts = _find_texts(vectors)
    search = texts if texts.queries else None
    exact = search and _search(
        _make_store(full, None, normalize, ()), search, similarity
    )
    rows = []
    for index, depth in enumerate(depths):
        for dim in dims:
            embed = cut_to_size(vectors, index, dim, normalize=False)
            for name in names:
                transform = None
                if name != NONE:
                    x = embed(sample, "document") if sample else texts.embed(embed)
                    try:
                        transform = _fit(name, x, normalize)
                    except ValueError as error:
                        # Such as a PCA to more dimensions than a small size has
                        if dim == dims[-1]:
                            raise
                        log(f"{name} at {depth} x {dim} is left out: {error}")
                        continue
                stored = _make_store(embed, transform, normalize, texts.stored_roles)
                is_full = (name, depth, dim) == (NONE, depths[-1], dims[-1])
                scores = baseline if is_full else evaluator(stored)
                main = float(scores["main_score"])
                row = CompressedScore(
                    *(name, depth, dim, main, *_compare(scores, baseline)),
                    *_count_bytes(transform, dim),
                )
                if search:
                    hits = _search(stored, search, similarity)
                    seconds = _time_search(stored, search, similarity)
                    row = row._replace(
                        recall=_measure_recall(hits, exact), milliseconds=1e3 * seconds
                    )
                rows.append(row)
                size = f"{row.bytes_per_vector:,} bytes"
                log(f"{name} at {depth} x {dim}: {main:.2f}, {size}")
    return _mark_best(_correct_p_values(rows))


def make_stored_embedder(
    evaluator: Evaluator, embed: EmbedFn, transform: str, *, normalize: bool = True
) -> EmbedFn:
    """An embedder of texts that come back from a store of transformed vectors.

    The transform is fitted to the documents of the evaluator's task, or to all its
    texts if it has none, as in `compression_study`.

    Args:
        evaluator: The evaluator, which is called once to know its texts.
        embed: Embed function (texts, role) -> [N, D], not normalized.
        transform: Transform as text, or NONE.
        normalize: Whether vectors are scaled to length 1 before they are stored.

    Raises:
        ValueError: The transform does not fit the vectors.
    """
    vectors = VectorCache(embed)
    evaluator(vectors)
    texts = _find_texts(vectors)
    fitted = None
    if transform != NONE:
        fitted = _fit(transform, texts.embed(vectors), normalize)
    return _make_store(vectors, fitted, normalize, texts.stored_roles)


def default_transforms(width: int) -> list[str]:
    """The transforms that are compared if none are named, for vectors of a width."""
    half, quarter = width // 2, width // 4
    return [
        *("float16", "bfloat16", "float8", "float8(scale=1.0)"),
        *("int8", "int8(raw=True)", "int4", "int2", "float8(format='e5m2')"),
        *("binary", "binary(threshold='median')"),
        *(f"pca({dim})" for dim in (half, quarter)),
        *(f"pca({dim}, center=False)" for dim in (half, quarter)),
        f"random_projection({quarter})",
        *(
            f"pca({dim}) | {code}"
            for dim in (half, quarter)
            for code in ("int8", "float8")
        ),
        f"pca({half}) | binary",
    ]


class _Texts(NamedTuple):
    """The texts of a task: those of a search, or all of its texts as documents.

    Attributes:
        role: Role of the documents.
        documents: Texts that are stored.
        queries: Queries of a search; () of another task.
    """

    role: str
    documents: Sequence[str]
    queries: Sequence[str] = ()

    @property
    def stored_roles(self) -> tuple[str, ...]:
        """Roles of the texts that are stored: of a search, the documents alone."""
        return ("document",) if self.queries else ("query", "document")

    def embed(self, embed: EmbedFn) -> np.ndarray:
        """Vectors of the documents."""
        return embed(self.documents, self.role)


def _fit(name: str, x: np.ndarray, normalize: bool) -> VectorTransform:
    """The transform of a name, fitted to a sample of the vectors [N, D]."""
    step = -(-len(x) // MAX_SAMPLE)
    return fit_transform(name, x[::step], normalize=normalize)


def _find_texts(vectors: VectorCache) -> _Texts:
    """The texts that an evaluator has embedded."""
    calls = {
        role: [texts for name, texts in vectors.calls if name == role]
        for role in ("query", "document")
    }
    if calls["document"]:
        return _Texts("document", max(calls["document"], key=len), calls["query"][0])
    # The vectors of the longest call serve as the sample of a task without documents
    return _Texts("query", max(calls["query"], key=len))


def _make_store(
    embed: EmbedFn,
    transform: VectorTransform | None,
    normalize: bool,
    stored_roles: Sequence[str],
) -> EmbedFn:
    """An embedder whose texts come back from a store of transformed vectors.

    Args:
        embed: The embedder.
        transform: What vectors are transformed by; None for nothing.
        normalize: Whether they are scaled to length 1.
        stored_roles: Roles of the texts that are stored; others keep their values.
    """
    quantizer = transform and transform.quantizer

    def embed_stored(texts, role):
        x = embed(texts, role)
        if transform is not None:
            x = transform.apply_maps(x)
        x = l2_normalize_rows(x) if normalize else x
        x = np.asarray(x, np.float32)
        return store_vectors(x, quantizer) if role in stored_roles else x

    return embed_stored


def _compare(
    scores: TaskScores, baseline: TaskScores
) -> tuple[float, float, float, float | None]:
    """Difference of the main scores, its interval, and its p, if there are items."""
    ours, theirs = (getattr(s, "item_values", None) for s in (scores, baseline))
    if ours is None or theirs is None:
        difference = float(scores["main_score"] - baseline["main_score"])
        return difference, difference, difference, None
    comparison = compare_items(ours, theirs, resamples=RESAMPLES)
    interval = comparison.difference, comparison.low, comparison.high
    return (*interval, comparison.p_value)


def _count_bytes(transform: VectorTransform | None, dim: int) -> tuple[int, int]:
    """Bytes of a vector, and bytes of the transform itself."""
    if transform is None:
        return 4 * dim, 0
    # Matrices, ranges and codebooks are stored once
    arrays = transform.describe()[1].values()
    width = transform.maps[-1].width if transform.maps else dim
    quantizer = transform.quantizer
    size = 4 * width if quantizer is None else quantizer.bytes_per_vector
    return size, sum(array.nbytes for array in arrays)


def _search(embed: EmbedFn, texts: _Texts, similarity: str) -> np.ndarray:
    """Numbers of the HITS best documents of each query: [Q, HITS]."""
    q, d = embed(texts.queries, "query"), texts.embed(embed)
    return rank_documents(q, d, HITS, similarity=similarity)[1]


def _measure_recall(hits: np.ndarray, exact: np.ndarray) -> float:
    """Percent of the exact hits [Q, k] that are among the hits [Q, k]."""
    is_found = (exact[:, :, None] == hits[:, None, :]).any(-1)
    return float(100 * is_found.mean())


def _time_search(embed: EmbedFn, texts: _Texts, similarity: str) -> float:
    """Median of the seconds to search all documents for one query."""
    # A single query, as a user waits for it
    q, d = embed(texts.queries, "query")[:1], texts.embed(embed)
    rank_documents(q, d, HITS, similarity=similarity)  # compiles
    seconds = []
    for _ in range(TIMED_TURNS):
        start = time.perf_counter()
        rank_documents(q, d, HITS, similarity=similarity)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _correct_p_values(rows: Sequence[CompressedScore]) -> list[CompressedScore]:
    """Rows whose p-values are corrected for the number of comparisons."""
    # The full size is compared with itself, which is no test
    full = find_full(rows)
    tested = [row for row in rows if row is not full and row.p_value is not None]
    if not tested:
        return list(rows)
    p_values = iter(apply_corrections([row.p_value for row in tested])["holm"].tolist())
    return [
        row._replace(p_value=next(p_values)) if row in tested else row for row in rows
    ]


def _mark_best(rows: Sequence[CompressedScore]) -> list[CompressedScore]:
    """Marks the rows for which no row has at least the score in fewer bytes."""
    return [
        row._replace(
            is_best=not any(
                (r.bytes_per_vector < row.bytes_per_vector and r.score >= row.score)
                or (r.bytes_per_vector == row.bytes_per_vector and r.score > row.score)
                for r in rows
            )
        )
        for row in rows
    ]


def find_full(rows: Sequence[CompressedScore]) -> CompressedScore:
    """The row of the full size in float32."""
    uncompressed = [row for row in rows if row.transform == NONE]
    return max(uncompressed, key=lambda row: (row.depth, row.dim))
