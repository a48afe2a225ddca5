"""Best-fit packing of texts into rows of a fixed length, and layouts of such rows."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

from research.data.sampling import Seed

# Row lengths: few of them, so that few shapes are compiled.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Packing(NamedTuple):
    """The row and the position of each of M texts.

    Attributes:
        row: [M] row of each text.
        segment_ids: [M] number of each text in its row, from 1.
        start: [M] position of each text's first token in its row.
        rows: Number of rows.
    """

    row: np.ndarray
    segment_ids: np.ndarray
    start: np.ndarray
    rows: int


class RowShape(NamedTuple):
    """Shape and seed of a source's pre-training batches.

    Attributes:
        rows: R, number of rows in a batch.
        length: S, number of tokens in a row.
        num_special: Number of special tokens around every text.
        seed: Seed of everything that is drawn.
    """

    rows: int
    length: int
    num_special: int
    seed: Seed


class BatchLayout(NamedTuple):
    """The M texts of a pre-training batch, and the row and position of each.

    Attributes:
        first_token: [M] int64 index of each text's first token in the source's table.
        num_tokens: [M] int64 number of tokens per text, special tokens excluded.
        row: [M] row of each text.
        segment_ids: [M] number of each text in its row, from 1.
        start: [M] position in the row at which each text begins.
        rows: R, number of rows in the batch.
        length: S, number of tokens in a row.
    """

    first_token: np.ndarray
    num_tokens: np.ndarray
    row: np.ndarray
    segment_ids: np.ndarray
    start: np.ndarray
    rows: int
    length: int


LayoutFn = Callable[[int], BatchLayout]  # the layout of a source's step


def one_text_per_row(
    first_token: np.ndarray, num_tokens: np.ndarray, length: int
) -> BatchLayout:
    """The layout of M texts in M rows, one text per row."""
    chex.assert_equal_shape([first_token, num_tokens])
    rows = np.arange(len(first_token))
    segment_ids = np.ones_like(rows)
    start = np.zeros_like(rows)
    return BatchLayout(
        first_token, num_tokens, rows, segment_ids, start, len(rows), length
    )


def bucket_length(length: int) -> int:
    """The smallest of LENGTHS that is at least `length`."""
    for size in LENGTHS:
        if length <= size:
            return size
    raise ValueError(f"length {length} is over the longest row, {LENGTHS[-1]} tokens")


def best_fit(lengths: np.ndarray, size: int, max_texts: int) -> Packing:
    """Best-fit decreasing: each text, longest first, into the fullest row it fits in.

    Args:
        lengths: [M] number of tokens of each text, in [1, size].
        size: Number of tokens in a row.
        max_texts: Maximum number of texts in a row.

    Raises:
        ValueError: A text is longer than a row.
    """
    chex.assert_rank(lengths, 1)
    if lengths.max() > size:
        raise ValueError(f"a text of {lengths.max()} tokens, in rows of {size}")
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    row, segment, start = ([0] * len(sizes) for _ in range(3))
    row_texts: list[int] = []  # number of texts in each row
    open_rows: dict[int, list[int]] = {}  # rows by their number of free tokens
    # Bit n is set if some row has n free tokens. The lowest set bit at or above the
    # length of a text then gives the fullest row with room for it.
    free_sizes = 0
    for text in order:
        length = sizes[text]
        # Take the fullest row that has room, or open a new one.
        fitting = free_sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            candidates = open_rows[free]
            r = candidates.pop()
            if not candidates:
                free_sizes ^= 1 << free
        else:
            r, free = len(row_texts), size
            row_texts.append(0)
        row_texts[r] += 1
        row[text], segment[text], start[text] = r, row_texts[r], size - free
        # The row stays open while it has free tokens and may hold another text.
        free -= length
        if free and row_texts[r] < max_texts:
            open_rows.setdefault(free, []).append(r)
            free_sizes |= 1 << free
    return Packing(np.array(row), np.array(segment), np.array(start), len(row_texts))


def pack_bins(lengths: np.ndarray, size: int, max_texts: int) -> Packing:
    """Packs every bin of texts into rows of its own, by the rule of `best_fit`.

    All bins advance together, so that the loop has one round for each text of a bin and
    not one for each text: many bins of few texts are packed fastest.

    Args:
        lengths: [G, T] number of tokens of each of T texts in each of G bins, in
            [1, size].
        size: Number of tokens in a row, at most 32,768.
        max_texts: Maximum number of texts in a row.

    Returns:
        A Packing with arrays [G, T], rows counted from 0 in each bin; its number of
        rows is that of the bin that needs most.

    Raises:
        ValueError: A text is longer than a row.
    """
    chex.assert_rank(lengths, 2)
    if lengths.max() > size:
        raise ValueError(f"a text of {lengths.max()} tokens, in rows of {size}")
    bins, texts = lengths.shape
    every_bin = np.arange(bins)
    order = np.argsort(-lengths, axis=1, kind="stable")  # [G, T], the longest first
    # [T, G], unsigned: a row that lacks room has the largest differences below
    descending = np.take_along_axis(lengths, order, axis=1).T.astype(np.uint16)
    # [G, rows] free tokens of each row; unused rows are the emptiest, and taken last
    rows = int(lengths.sum(axis=1).max()) // size + 1
    free = np.full((bins, rows), size, np.uint16)
    row_texts = np.zeros((bins, rows), np.int64)
    row, segment, start = (np.zeros((texts, bins), np.int64) for _ in range(3))
    for i, text_lengths in enumerate(descending):
        slack = free - text_lengths[:, None]  # wraps around where there is no room
        fullest = slack.argmin(axis=1)  # [G], the fullest row with room
        if (slack[every_bin, fullest] > size).any():
            # A bin has no such row: every bin gets another one
            free = np.pad(free, ((0, 0), (0, 1)), constant_values=size)
            row_texts = np.pad(row_texts, ((0, 0), (0, 1)))
            fullest = (free - text_lengths[:, None]).argmin(axis=1)
        count = row_texts[every_bin, fullest] + 1
        row[i], segment[i], start[i] = fullest, count, size - free[every_bin, fullest]
        row_texts[every_bin, fullest] = count
        # A row with as many texts as it may hold has no room
        left = free[every_bin, fullest] - text_lengths
        free[every_bin, fullest] = np.where(count < max_texts, left, 0)
    # [G, T] in the order of the arguments
    inverse = np.argsort(order, axis=1)
    row, segment, start = (
        np.take_along_axis(x.T, inverse, axis=1) for x in (row, segment, start)
    )
    return Packing(row, segment, start, int(row.max()) + 1)


def split_evenly(sizes: np.ndarray, bins: int) -> np.ndarray:
    """Deals items into bins of equal number and nearly equal total size.

    The largest items go to bins 0 ... G-1, the next ones to bins G-1 ... 0, and so on.

    Args:
        sizes: [N] size of each item.
        bins: G, number of bins, which divides N.

    Returns:
        [G, N / G] indices of each bin's items.
    """
    chex.assert_is_divisible(len(sizes), bins)
    if bins == 1:
        return np.arange(len(sizes))[None]
    rounds = np.argsort(-sizes, kind="stable").reshape(-1, bins)  # [N / G, G]
    rounds[1::2] = rounds[1::2, ::-1]
    return np.sort(rounds.T, axis=1)


def token_offsets(lengths: np.ndarray) -> np.ndarray:
    """Position of every token in its text, for texts end to end: [sum of lengths]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
