"""Quality, bytes and latency of compressed embeddings, with a plot of the best trades.

Each transform is scored at each depth and width on the same items as the embeddings of
full size in float32, so that every loss comes with its significance. Transforms are
fitted once, to documents, and not per query or per part of the corpus.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.eval.comparison.significance import (
    apply_corrections,
    compare_items,
    mark_p,
)
from research.eval.figures import figure
from research.eval.tables import markdown_page
from research.eval.vector_cache import VectorCache, cut_to_size
from research.inference.index.quantized_vectors import store_vectors
from research.inference.search import rank_documents
from research.transforms.normalize import l2_normalize_rows
from research.transforms.pipeline import VectorTransform, fit_transform
from research.types import EmbedFn, Evaluator, TaskScores

NONE = "none"  # no transform: float32
MAX_SAMPLE = 100_000  # documents that a transform is fitted to
HITS = 10  # of the searches whose latency is measured
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
        milliseconds: Median of the milliseconds to search all documents for one query.
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
    milliseconds: float
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

    Args:
        evaluator: Evaluator of a search.
        embed_all_depths: Function (texts, role) -> [N, depths, D], vectors that are not
            normalized.
        transforms: Transforms as text; NONE is always there, first.
        depths: Numbers of blocks, the full depth last.
        dims: Widths, the full width last.
        normalize: Whether vectors are scaled to length 1 before they are stored.
        similarity: How searches compare vectors.
        sample: Texts that the transforms are fitted to; without any, the documents of
            the task.
        log: Function that is called with a line of text per row.

    Raises:
        ValueError: A transform does not fit the full width, or the task searches no
            documents.
    """
    vectors = VectorCache(embed_all_depths)
    names = list(dict.fromkeys((NONE, *transforms)))
    # The full size in float32 comes first: all else is compared with it
    full = cut_to_size(vectors, len(depths) - 1, dims[-1], normalize=False)
    baseline = evaluator(_make_store(full, None, normalize))
    documents = [key for key in vectors.calls if key[0] == "document"]
    if not documents:
        raise ValueError("this task searches no documents, whose vectors are stored")
    corpus = max(documents, key=lambda key: len(key[1]))[1]
    queries = next(texts for role, texts in vectors.calls if role == "query")
    rows = []
    for index, depth in enumerate(depths):
        for dim in dims:
            embed = cut_to_size(vectors, index, dim, normalize=False)
            for name in names:
                transform = None
                if name != NONE:
                    x = embed(sample or corpus, "document")
                    x = x[:: -(-len(x) // MAX_SAMPLE)]
                    try:
                        transform = fit_transform(name, x, normalize=normalize)
                    except ValueError as error:
                        # Such as a PCA to more dimensions than a small size has
                        if dim == dims[-1]:
                            raise
                        log(f"{name} at {depth} x {dim} is left out: {error}")
                        continue
                stored = _make_store(embed, transform, normalize)
                is_full = (name, depth, dim) == (NONE, depths[-1], dims[-1])
                scores = baseline if is_full else evaluator(stored)
                difference, low, high, p_value = _compare(scores, baseline)
                seconds = _time_search(stored, queries, corpus, similarity)
                sizes = _count_bytes(transform, dim)
                main = float(scores["main_score"])
                row = (name, depth, dim, main, difference, low, high, p_value)
                rows.append(CompressedScore(*row, *sizes, 1e3 * seconds))
                log(f"{name} at {depth} x {dim}: {main:.2f}, {sizes[0]:,} bytes")
    return _mark_best(_correct_p_values(rows))


def default_transforms(width: int) -> list[str]:
    """The transforms that are compared if none are named, for vectors of a width."""
    half, quarter = width // 2, width // 4
    return [
        *("float16", "bfloat16", "float8", "float8(scale=1.0)"),
        *("int8", "int8(raw=True)", "binary", "binary(threshold='median')"),
        *(f"pca({dim})" for dim in (half, quarter)),
        *(f"pca({dim}, center=False)" for dim in (half, quarter)),
        f"random_projection({quarter})",
        *(f"pca({dim}) | {code}" for dim in (half, quarter) for code in ("int8",)),
        f"pca({half}) | binary",
    ]


def to_record(rows: Sequence[CompressedScore]) -> dict[str, Any]:
    """The rows as JSON; the main score is that of the full size in float32."""
    full = _find_full(rows)
    return {"main_score": full.score, "rows": [row._asdict() for row in rows]}


def format_markdown(rows: Sequence[CompressedScore], title: str) -> str:
    """A table with a row for each transform, depth and width, the largest first."""
    full = _find_full(rows)
    cells = [
        [
            _format_name(row),
            f"{row.depth} x {row.dim}",
            f"{row.score:.2f}",
            f"{100 * row.score / full.score:.1f} %" if full.score else "",
            "" if row is full else f"{row.difference:+.2f}{mark_p(row.p_value)}",
            "" if row is full else f"{row.low:+.2f} to {row.high:+.2f}",
            f"{row.bytes_per_vector:,}",
            f"{row.fixed_bytes:,}",
            f"{row.milliseconds:.2f}",
        ]
        for row in sorted(rows, key=lambda row: -row.bytes_per_vector)
    ]
    header = [
        *("transform", "size", "main score", "of full", "difference"),
        *("95 % interval", "bytes", "bytes once", "ms / query"),
    ]
    note = (
        "Bold: no row has at least this score in fewer bytes. Differences are from the "
        "full size in float32; an asterisk is p < 0.05 after Holm's correction."
    )
    return markdown_page(title, header, cells, note)


def plot_pareto(rows: Sequence[CompressedScore], title: str, path: Path):
    """Draws scores over bytes per vector, in colors of the latency, as a PNG.

    Returns:
        The matplotlib Figure.
    """
    with figure(path, (8, 5)) as (picture, axes):
        points = axes.scatter(
            [row.bytes_per_vector for row in rows],
            [row.score for row in rows],
            c=[row.milliseconds for row in rows],
            cmap="viridis_r",
            zorder=3,
        )
        # The best trades, from the fewest bytes to the most
        best = sorted((r for r in rows if r.is_best), key=lambda r: r.bytes_per_vector)
        axes.plot(
            [row.bytes_per_vector for row in best],
            [row.score for row in best],
            color="gray",
            drawstyle="steps-post",
            zorder=2,
        )
        for row in best:
            axes.annotate(
                f"{row.transform}, {row.depth} x {row.dim}",
                (row.bytes_per_vector, row.score),
                xytext=(4, -10),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set_xscale("log", base=2)
        axes.set(xlabel="bytes per vector", ylabel="main score, %", title=title)
        picture.colorbar(points, ax=axes, label="ms per query")
    return picture


def _format_name(row: CompressedScore) -> str:
    """The transform of a row in Markdown, where | would end the cell."""
    name = row.transform.replace("|", "\\|")
    return f"**{name}**" if row.is_best else name


def _make_store(
    embed: EmbedFn, transform: VectorTransform | None, normalize: bool
) -> EmbedFn:
    """An embedder whose documents come back from a store of transformed vectors."""
    quantizer = transform and transform.quantizer

    def embed_stored(texts, role):
        x = embed(texts, role)
        if transform is not None:
            x = transform.apply_maps(x)
        x = l2_normalize_rows(x) if normalize else x
        x = np.asarray(x, np.float32)
        return store_vectors(x, quantizer) if role == "document" else x

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


def _time_search(
    embed: EmbedFn, queries: Sequence[str], documents: Sequence[str], similarity: str
) -> float:
    """Median of the seconds to search all documents for one query."""
    # A single query, as a user waits for it
    q, d = embed(queries, "query")[:1], embed(documents, "document")
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
    full = _find_full(rows)
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


def _find_full(rows: Sequence[CompressedScore]) -> CompressedScore:
    """The row of the full size in float32."""
    uncompressed = [row for row in rows if row.transform == NONE]
    return max(uncompressed, key=lambda row: (row.depth, row.dim))
