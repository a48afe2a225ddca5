"""Batches token rows into few shapes, and encodes them asynchronously."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from research.models.attention.inputs import MAX_DENSE_LENGTH, PrefixKV
from research.progress import show_progress
from research.sharding import count_batch_devices
from research.types import Array

# Maximum number of batches in the device's queue; more would only take memory.
MAX_IN_FLIGHT = 16
# Lengths of a shared prefix are multiples of this number, because every length is
# compiled separately; shorter prefixes are not shared.
PREFIX_STEP = 16
_FEW_ROWS = 16


class TokenRows(NamedTuple):
    """Rows of tokens, each at most as long as the encoder's longest text.

    Attributes:
        token_ids: N arrays [S] int32, one per row.
        span_ids: N arrays [S] int32, m >= 1 for the tokens of the row's m-th span and 0
            for tokens that are not pooled; every span has a token. None if each row is
            a single span.
        pst_positions: [N] int32 position of <PST> in each row; None without the token.
    """

    token_ids: Sequence[np.ndarray]
    span_ids: Sequence[np.ndarray] | None = None
    pst_positions: np.ndarray | None = None


class PaddedRows(NamedTuple):
    """The inputs of one batch, padded to one shape.

    Attributes:
        token_ids: [R, S] int32 token ids.
        lengths: [R] int32 number of tokens in each row.
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
        batch_tokens: Approximate number of rows times row length.
        max_length: Maximum length of a row.
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
        max_length: Maximum length of a row.
        batch_tokens: Number of tokens per batch and device; None for 1,024 on CPU,
            where a larger batch does not fit the cache, and 32,768 elsewhere.
        mesh: Rows are spread over its axes of a batch.
    """
    # Rows are split evenly over the devices.
    devices = 1 if mesh is None else count_batch_devices(mesh)
    if batch_tokens is None:
        batch_tokens = 1_024 if jax.default_backend() == "cpu" else 32_768
    return BatchSizes(batch_tokens * devices, max_length, devices)


def padded_length(length: int) -> int:
    """Rounds a row length up to one of few compiled lengths: steps of 8, 16, 32 ..."""
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
        Indices of rows [n], the number of rows in the padded batch (at least n), and
        the row length. All full batches of one length have the same number of rows; a
        batch ends early where rows are at most half as long as its longest, and then
        has one of few numbers of rows times `row_multiple`.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    multiple = sizes.row_multiple
    # Each batch is as long as its first row, which is the longest.
    start = 0
    while start < len(order):
        length = min(padded_length(int(descending[start])), sizes.max_length)
        # The end of the rows that are longer than half of it, or of all short ones.
        half = length // 2 if length > padded_length(1) else 0
        end = max(start + 1, int(np.searchsorted(-descending, -half)))
        rows = max(1, sizes.batch_tokens // length // multiple)
        remaining = -(-(end - start) // multiple)
        rows = min(rows, _pad_count(remaining)) * multiple
        stop = min(start + rows, end)
        yield order[start:stop], rows, length
        start = stop


def _pad_count(count: int) -> int:
    """Rounds a number of rows up to 1, 2, 3, 4, 6, 8, 12 ..."""
    power = 1 << (count - 1).bit_length()
    return power // 4 * 3 if 0 < count <= power // 4 * 3 else power


def encode_rows(
    rows: TokenRows,
    sizes: BatchSizes,
    encode: Callable[[PaddedRows, int, PrefixKV | None], Array],
    encode_prefix: Callable[[np.ndarray], PrefixKV] | None = None,
    *,
    pools_last_token: bool = False,
    keeps_tokens: bool = False,
) -> np.ndarray:
    """Computes the vectors of all spans of token rows.

    Args:
        rows: The rows of tokens.
        sizes: The sizes of a batch.
        encode: Function (padded rows, M, keys and values of the prefix) -> [R, M, ...],
            the vectors of the first M spans of each row. It should not wait for them.
        encode_prefix: Function from token ids [P] to the keys and values of a prefix
            that all rows share; None for a model that cannot share a prefix.
        pools_last_token: Whether a vector is the state of the last pooled token alone.
        keeps_tokens: Whether there is a vector [R, S, ...] for each token of a row, and
            those of pooled tokens are kept.

    Returns:
        [total number of spans, ...] float32, in the order of the rows; or [total number
        of pooled tokens, ...].
    """
    # A prefix that all rows share is computed once.
    prefix = None
    if encode_prefix is not None:
        length = common_prefix_length(rows, pools_last_token=pools_last_token)
        if length:
            prefix = encode_prefix(rows.token_ids[0][:length])
            rows = _drop_prefix(rows, length)
    # [N] number of spans and of vectors per row; index of the row's first vector.
    num_spans = np.ones(len(rows.token_ids), int)
    if rows.span_ids is not None:
        num_spans = np.array([spans.max() for spans in rows.span_ids])
    masks = list_pooled_tokens(rows) if keeps_tokens else []
    counts = np.array([mask.sum() for mask in masks]) if masks else num_spans
    first = np.cumsum(counts) - counts
    vectors = None
    batches = pad_batches(rows, num_spans, sizes)
    # The timer of a line of progress costs as much as a few texts
    progress = nullcontext(lambda count: None)
    if len(counts) > _FEW_ROWS:
        phase = f"embedding {len(counts):,} texts"
        progress = show_progress(phase, len(counts), "texts")
    with progress as advance:
        for numbers, output in _run_ahead(batches, encode, prefix):
            if vectors is None:
                vectors = np.empty((counts.sum(), *output.shape[2:]), np.float32)
            # Scatter [R, M, ...] to the vectors of the rows, without the padding.
            if masks:
                valid = _pad([masks[i] for i in numbers], len(numbers), output.shape[1])
                valid = valid > 0  # [n, S]
            else:
                valid = np.arange(output.shape[1]) < num_spans[numbers, None]  # [n, M]
            order = first[numbers, None] + np.cumsum(valid, axis=1) - 1
            vectors[order[valid]] = np.asarray(output)[: len(numbers)][valid]
            advance(len(numbers))
    return vectors


def list_pooled_tokens(rows: TokenRows) -> list[np.ndarray]:
    """Whether each token of each row is pooled: N arrays [S] bool."""
    if rows.span_ids is None:
        return [np.ones(len(row), bool) for row in rows.token_ids]
    return [spans > 0 for spans in rows.span_ids]


def pad_batches(
    rows: TokenRows, counts: np.ndarray, sizes: BatchSizes
) -> Iterator[tuple[np.ndarray, PaddedRows, int]]:
    """Groups rows into batches, and pads each batch.

    Args:
        rows: The rows of tokens.
        counts: [N] number of spans per row.
        sizes: The sizes of a batch.

    Yields:
        Indices of rows [n], the padded rows [R, S] with R >= n, and the maximum number
        of spans in a row of the batch, rounded up to a power of two.
    """
    lengths = np.array([len(row) for row in rows.token_ids])
    for numbers, row_count, length in group_by_length(lengths, sizes):
        # Padded rows have one token, since attention needs one.
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
    """Length of the prefix that all rows share and that can be computed once.

    No token of the prefix may be pooled, unless only the last token is pooled
    (`pools_last_token`). The length is rounded down to a multiple of PREFIX_STEP; it is
    0 if the attention scores of the remaining tokens would take too much memory.
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
    # The first position at which a row differs from the others.
    starts = np.stack([row[: min(limits)] for row in token_ids])
    is_equal = np.append((starts == starts[:1]).all(0), False)
    length = int(is_equal.argmin()) // PREFIX_STEP * PREFIX_STEP
    # [S - P, S] scores per row and head must fit.
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
    """Yields row indices and outputs in order, while later batches are computed."""
    pending = deque()
    for numbers, padded, max_segments in batches:
        pending.append((numbers, encode(padded, max_segments, prefix)))
        if len(pending) > MAX_IN_FLIGHT:
            yield pending.popleft()
    yield from pending


def _pad(arrays: Sequence[np.ndarray], rows: int, length: int) -> np.ndarray:
    """Stacks arrays of at most `length` values, padded with 0: [rows, length] int32."""
    table = np.zeros((rows, length), np.int32)
    for i, array in enumerate(arrays):
        table[i, : len(array)] = array
    return table
