"""Rows of tokens through a model: few shapes, and the device never waits."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from research.models.attention.inputs import MAX_DENSE_LENGTH
from research.models.config import EncoderConfig
from research.types import Array

# Batches that are computing or wait to be; more would only hold their inputs in memory.
IN_FLIGHT = 16
# The fewest tokens that are worth a computation of their own, and what their number is
# a multiple of: for every number programs are compiled.
SHARED = 16


class Runner(NamedTuple):
    """A model, ready for rows.

    Attributes:
        vectors: (tables, slots=M, prefix=None) -> [R, M, ...], the vectors of rows:
            {"ids": [R, S], "lengths": [R], perhaps "spans": [R, S], which span a token
            is pooled in, and "marks": [R]}, as arrays of int32.
        prefix: ids [P] -> what `vectors` takes for tokens before those of every row;
            None for a model that cannot share them.
        last: whether a vector is the state of the last pooled token.
    """

    vectors: Callable[..., Array]
    prefix: Callable[[np.ndarray], Any] | None
    last: bool


class TokenRows(NamedTuple):
    """Rows of tokens, each at most as long as the encoder reaches.

    Attributes:
        ids: an [S] int32 for every row.
        spans: for every row an [S] int32, m >= 1 for the tokens of its m-th span, each
            of at least one; None for a span over all of each row.
        marks: [N] int32, the place in each row of the token that is prepended; None
            without one.
    """

    token_ids: Sequence[np.ndarray]
    span_ids: Sequence[np.ndarray] | None = None
    pst_positions: np.ndarray | None = None


def padded_length(length: int) -> int:
    """The next of the row lengths that we compile for: steps of 8, 16, 32, 64 ..."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def length_batches(
    lengths: np.ndarray, batch_tokens: int, longest: int, multiple: int = 1
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batches of about equal size of texts of about equal length, longest first.

    Args:
        lengths: [N] tokens of each text.
        batch_tokens: rows times row length, about.
        longest: no row is longer.
        multiple: the number of rows divides by this.

    Yields:
        text numbers, rows, row length. Rows is the same for every full batch of a
        length, and a power of two times `multiple` in the last one.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        length = min(padded_length(int(lengths[order[start]])), longest)
        rows = max(1, batch_tokens // length // multiple)
        left = -(-(len(order) - start) // multiple)
        rows = min(rows, 1 << (left - 1).bit_length()) * multiple
        yield order[start : start + rows], rows, length
        start += rows


def batch_sizes(
    cfg: EncoderConfig, batch_tokens: int | None, mesh: Mesh | None
) -> tuple[int, int, int]:
    """The arguments of `batches` after the lengths, as `make_embedder` has them."""
    multiple = 1 if mesh is None else mesh.shape["data"]
    if batch_tokens is None:
        batch_tokens = 1_024 if jax.default_backend() == "cpu" else 32_768
    return batch_tokens * multiple, cfg.max_len, multiple


def row_vectors(
    run: Runner, found: TokenRows, sizes: tuple[int, int, int]
) -> np.ndarray:
    """The vectors of rows of tokens.

    Args:
        run: as `embed.make_runners` makes it.
        found: the rows.
        sizes: of the batches, from `batch_sizes`.

    Returns:
        [P, ...] float32, spans of the first row first.
    """
    count = 0 if run.prefix is None else common_prefix_length(found, last=run.last)
    prefix = run.prefix(found.token_ids[0][:count]) if count else None
    ids, spans, marks = _rest(found, count)
    counts = np.array([1] * len(ids) if spans is None else [x.max() for x in spans])
    first = np.cumsum(counts) - counts
    lengths = np.array([len(row) for row in ids])
    vectors, waiting = None, deque()
    for chosen, rows, length in length_batches(lengths, *sizes):
        taken = np.ones(rows, np.int32)  # filler rows have length 1
        taken[: len(chosen)] = lengths[chosen]
        tables = {"ids": _table([ids[i] for i in chosen], rows, length)}
        tables["lengths"] = taken
        if spans is not None:
            tables["spans"] = _table([spans[i] for i in chosen], rows, length)
        if marks is not None:
            tables["marks"] = np.zeros(rows, np.int32)
            tables["marks"][: len(chosen)] = marks[chosen]
        slots = 1 << int(counts[chosen].max() - 1).bit_length()
        part = run.vectors(tables, slots, prefix)  # dispatched, not waited for
        waiting.append((first[chosen], counts[chosen], part))
        if len(waiting) > IN_FLIGHT:
            vectors = _stored(vectors, counts.sum(), *waiting.popleft())
    for done in waiting:
        vectors = _stored(vectors, counts.sum(), *done)
    return vectors


def common_prefix_length(found: TokenRows, *, last: bool) -> int:
    """How many tokens all rows begin with, and only their later tokens see: P or 0.

    They do not pool, unless only the last token's state counts (`last`). 0 where P is
    below `SHARED` or the scores of the rest would take too much memory.
    """
    ids, spans, marks = found
    if len(ids) < 2 or (spans is None and not last):
        return 0
    most = [min(map(len, ids)) - 1]
    if marks is not None:
        most.append(marks.min())
    if spans is not None:
        if max(span.max() for span in spans) > 1:
            return 0
        most += [np.flatnonzero(span)[-1 if last else 0] for span in spans]
    if min(most) < SHARED:
        return 0
    starts = np.stack([row[: min(most)] for row in ids])
    same = np.append((starts == starts[:1]).all(0), False)
    count = int(same.argmin()) // SHARED * SHARED
    longest = max(map(len, ids))
    return count if longest * (longest - count) <= MAX_DENSE_LENGTH**2 else 0


def _rest(found: TokenRows, count: int) -> TokenRows:
    """The rows without their first tokens."""
    if not count:
        return found
    spans, marks = found.span_ids, found.pst_positions
    return TokenRows(
        [row[count:] for row in found.token_ids],
        None if spans is None else [span[count:] for span in spans],
        None if marks is None else marks - np.int32(count),
    )


def _table(parts: list[np.ndarray], rows: int, length: int) -> np.ndarray:
    """[rows, length] int32 of arrays that are at most as long, padded with 0."""
    table = np.zeros((rows, length), np.int32)
    for i, row in enumerate(parts):
        table[i, : len(row)] = row
    return table


def _stored(
    vectors: np.ndarray | None,
    total: int,
    first: np.ndarray,
    counts: np.ndarray,
    part: Array,
) -> np.ndarray:
    """All `total` vectors with those of a batch put where they stand.

    Args:
        vectors: those that are there; None before the first batch.
        total: how many there will be.
        first: [N] where the vectors of each row of the batch start.
        counts: [N] how many a row has.
        part: [R, M, ...], R >= N and M >= all counts.
    """
    if vectors is None:
        vectors = np.empty((total, *part.shape[2:]), np.float32)
    slot = np.arange(part.shape[1])[None]
    real = slot < counts[:, None]
    vectors[(first[:, None] + slot)[real]] = np.asarray(part)[: len(first)][real]
    return vectors
