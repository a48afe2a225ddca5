"""Texts packed end to end into rows of a fixed length, never split."""

from typing import NamedTuple

import numpy as np

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Packing(NamedTuple):
    """Where the M texts went.

    Attributes:
        row: [M] the row of every text.
        segment: [M] which text of its row it is, from 1.
        start: [M] the position of its first token.
        rows: how many rows there are.
    """

    row: np.ndarray
    segment_ids: np.ndarray
    start: np.ndarray
    rows: int


def bucket(length: int) -> int:
    """The smallest of LENGTHS that is at least `length`."""
    for size in LENGTHS:
        if length <= size:
            return size
    raise ValueError(f"length {length} is over the longest row, {LENGTHS[-1]} tokens")


def best_fit(lengths: np.ndarray, size: int, limit: int) -> Packing:
    """Best-fit decreasing: each text, longest first, into the fullest row it fits in.

    Args:
        lengths: [M] tokens of every text, each in [1, size].
        size: tokens in a row.
        limit: texts in a row.

    Raises:
        ValueError: a text is longer than a row.
    """
    if lengths.max() > size:
        raise ValueError(f"a text of {lengths.max()} tokens, in rows of {size}")
    order = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    row, segment, start = ([0] * len(sizes) for _ in range(3))
    held: list[int] = []  # texts in each row
    open_rows: dict[int, list[int]] = {}  # rows by the room that is left in them
    rooms = 0  # bit n: a row with n tokens left is open
    for text in order:
        length = sizes[text]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            candidates = open_rows[room]
            r = candidates.pop()
            if not candidates:
                rooms ^= 1 << room
        else:
            r, room = len(held), size
            held.append(0)
        held[r] += 1
        row[text], segment[text], start[text] = r, held[r], size - room
        room -= length
        if room and held[r] < limit:
            open_rows.setdefault(room, []).append(r)
            rooms |= 1 << room
    return Packing(np.array(row), np.array(segment), np.array(start), len(held))
