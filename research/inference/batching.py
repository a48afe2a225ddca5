"""Batches of token rows in few shapes, computed without waiting for the device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from research.models.attention.inputs import MAX_DENSE_LENGTH, PrefixKV
from research.types import Array

# Batches that compute or wait at the same time; more would only hold their inputs.
MAX_IN_FLIGHT = 16
# A shared prefix is computed on its own from this many tokens on, and in multiples of
# it, because programs are compiled for every length of a prefix.
PREFIX_STEP = 16


class TokenRows(NamedTuple):
    """Rows of tokens, each at most as long as the encoder's longest text.

    Attributes:
        token_ids: An [S] int32 array per row.
        span_ids: An [S] int32 array per row: m >= 1 for the tokens of its m-th span,
            each span of at least one token; None where a row is one span.
        pst_positions: [N] int32 position of <PST> in each row; None without the token.
    """

    token_ids: Sequence[np.ndarray]
    span_ids: Sequence[np.ndarray] | None = None
    pst_positions: np.ndarray | None = None


class PaddedRows(NamedTuple):
    """The inputs of one batch, padded to one shape.

    Attributes:
        token_ids: [R, S] int32.
        lengths: [R] int32 number of tokens of each row.
        span_ids: [R, S] int32, as in `TokenRows`.
        pst_positions: [R] int32, as in `TokenRows`.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    span_ids: np.ndarray | None
    pst_positions: np.ndarray | None


class BatchSizes(NamedTuple):
    """How rows are grouped into batches.

    Attributes:
        batch_tokens: Number of rows times row length, approximately.
        max_length: Length of the longest row.
        row_multiple: The number of rows of a batch is a multiple of this.
    """

    batch_tokens: int
    max_length: int
    row_multiple: int = 1


def choose_batch_sizes(
    max_length: int, batch_tokens: int | None, mesh: Mesh | None
) -> BatchSizes:
    """Batch sizes for the devices of a mesh, or for the default device.

    Args:
        max_length: Length of the longest row.
        batch_tokens: Tokens of a batch on each device; None takes 1,024 on CPU, where
            a larger batch leaves the cache, and 32,768 elsewhere.
        mesh: Rows are spread over its 'data' axis.
    """
    devices = 1 if mesh is None else mesh.shape["data"]
    if batch_tokens is None:
        batch_tokens = 1_024 if jax.default_backend() == "cpu" else 32_768
    return BatchSizes(batch_tokens * devices, max_length, devices)


def padded_length(length: int) -> int:
    """The smallest compiled row length >= length: steps of 8, 16, 32, 64 ..."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def group_by_length(
    lengths: np.ndarray, sizes: BatchSizes
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Groups rows of similar length into batches of similar size, longest first.

    Args:
        lengths: [N] number of tokens of each row.
        sizes: The sizes of a batch.

    Yields:
        Row numbers, number of rows of the batch (at least as many), and row length. All
        full batches of one length have the same number of rows; the last batch has a
        power of two times `row_multiple`.
    """
    order = np.argsort(-lengths, kind="stable")
    multiple = sizes.row_multiple
    start = 0
    while start < len(order):
        length = min(padded_length(int(lengths[order[start]])), sizes.max_length)
        rows = max(1, sizes.batch_tokens // length // multiple)
        remaining = -(-(len(order) - start) // multiple)
        rows = min(rows, 1 << (remaining - 1).bit_length()) * multiple
        yield order[start : start + rows], rows, length
        start += rows


def encode_rows(
    rows: TokenRows,
    sizes: BatchSizes,
    encode: Callable[[PaddedRows, int, PrefixKV | None], Array],
    encode_prefix: Callable[[np.ndarray], PrefixKV] | None = None,
    *,
    pools_last_token: bool = False,
) -> np.ndarray:
    """Vectors of the spans of token rows.

    Args:
        rows: The rows of tokens.
        sizes: The sizes of a batch.
        encode: (padded rows, M, keys and values of the prefix) -> [R, M, ...], the
            vectors of the first M spans of each row; it should not wait for them.
        encode_prefix: token ids [P] -> the keys and values of a prefix that rows share;
            None for a model that cannot share a prefix.
        pools_last_token: Whether a vector is the state of the last pooled token alone.

    Returns:
        [sum of spans, ...] float32, the spans of the first row first.
    """
    # What all rows begin with is computed once.
    prefix = None
    if encode_prefix is not None:
        length = common_prefix_length(rows, pools_last_token=pools_last_token)
        if length:
            prefix = encode_prefix(rows.token_ids[0][:length])
            rows = _drop_prefix(rows, length)
    # [N] number of spans per row, and where the vectors of each row start.
    if rows.span_ids is None:
        counts = np.ones(len(rows.token_ids), int)
    else:
        counts = np.array([spans.max() for spans in rows.span_ids])
    first = np.cumsum(counts) - counts
    vectors = None
    for numbers, output in _run_ahead(pad_batches(rows, counts, sizes), encode, prefix):
        if vectors is None:
            vectors = np.empty((counts.sum(), *output.shape[2:]), np.float32)
        # Scatter [R, M, ...] to the rows' vectors; fill-in rows and spans are left out.
        span = np.arange(output.shape[1])
        valid = span < counts[numbers, None]  # [n, M]
        vectors[(first[numbers, None] + span)[valid]] = np.asarray(output)[
            : len(numbers)
        ][valid]
    return vectors


def pad_batches(
    rows: TokenRows, counts: np.ndarray, sizes: BatchSizes
) -> Iterator[tuple[np.ndarray, PaddedRows, int]]:
    """Batches of padded rows.

    Args:
        rows: The rows of tokens.
        counts: [N] number of spans per row.
        sizes: The sizes of a batch.

    Yields:
        Row numbers [n], the padded rows [R, S] with R >= n, and the number of spans
        that a row of the batch has at most, a power of two.
    """
    lengths = np.array([len(row) for row in rows.token_ids])
    for numbers, row_count, length in group_by_length(lengths, sizes):
        # Fill-in rows have one token, since attention needs one.
        row_lengths = np.ones(row_count, np.int32)
        row_lengths[: len(numbers)] = lengths[numbers]
        spans = positions = None
        if rows.span_ids is not None:
            spans = _pad([rows.span_ids[i] for i in numbers], row_count, length)
        if rows.pst_positions is not None:
            positions = np.zeros(row_count, np.int32)
            positions[: len(numbers)] = rows.pst_positions[numbers]
        token_ids = _pad([rows.token_ids[i] for i in numbers], row_count, length)
        padded = PaddedRows(token_ids, row_lengths, spans, positions)
        yield numbers, padded, 1 << int(counts[numbers].max() - 1).bit_length()


def common_prefix_length(rows: TokenRows, *, pools_last_token: bool) -> int:
    """Number of first tokens that all rows share and that may be computed once.

    These tokens are not pooled, unless only the last token is (`pools_last_token`). The
    result is 0 where it would be below `PREFIX_STEP`, or where the attention scores of
    the remaining tokens would take too much memory.
    """
    token_ids, span_ids, pst_positions = rows
    if len(token_ids) < 2 or (span_ids is None and not pools_last_token):
        return 0
    # The prefix ends before the last token, <PST>, and the first pooled token.
    limits = [min(map(len, token_ids)) - 1]
    if pst_positions is not None:
        limits.append(pst_positions.min())
    if span_ids is not None:
        if max(spans.max() for spans in span_ids) > 1:
            return 0
        pooled = -1 if pools_last_token else 0
        limits += [np.flatnonzero(spans)[pooled] for spans in span_ids]
    if min(limits) < PREFIX_STEP:
        return 0
    starts = np.stack([row[: min(limits)] for row in token_ids])
    is_equal = np.append((starts == starts[:1]).all(0), False)
    length = int(is_equal.argmin()) // PREFIX_STEP * PREFIX_STEP
    longest = max(map(len, token_ids))
    fits = longest * (longest - length) <= MAX_DENSE_LENGTH**2
    return length if fits else 0


def _drop_prefix(rows: TokenRows, length: int) -> TokenRows:
    """The rows without their first `length` tokens."""
    spans, positions = rows.span_ids, rows.pst_positions
    return TokenRows(
        [row[length:] for row in rows.token_ids],
        None if spans is None else [span[length:] for span in spans],
        None if positions is None else positions - np.int32(length),
    )


def _run_ahead(
    batches: Iterable[tuple[np.ndarray, PaddedRows, int]],
    encode: Callable[[PaddedRows, int, PrefixKV | None], Array],
    prefix: PrefixKV | None,
) -> Iterator[tuple[np.ndarray, Array]]:
    """Yields row numbers and outputs in order, while later batches compute already."""
    pending = deque()
    for numbers, padded, max_segments in batches:
        pending.append((numbers, encode(padded, max_segments, prefix)))
        if len(pending) > MAX_IN_FLIGHT:
            yield pending.popleft()
    yield from pending


def _pad(arrays: Sequence[np.ndarray], rows: int, length: int) -> np.ndarray:
    """[rows, length] int32 of arrays that are at most as long, padded with 0."""
    table = np.zeros((rows, length), np.int32)
    for i, array in enumerate(arrays):
        table[i, : len(array)] = array
    return table
