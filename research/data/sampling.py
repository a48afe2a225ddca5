"""Which source a step draws from, and which of its rows: functions of the step."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import floor

import numpy as np

Seed = tuple[int, ...]


def source_step(step: int, weights: Sequence[float], offsets: Sequence[float]) -> tuple:
    """(the source of a step, how many earlier steps it had).

    The first source takes its share of the steps evenly spaced, the second its share
    of those that are left, and so on; all counts are in closed form.

    Args:
        step: from 0.
        weights: the sources' shares, relative to each other.
        offsets: in [0, 1), where in its interval each source takes its first step.
    """
    for index, offset in enumerate(offsets):
        share = weights[index] / sum(weights[index:])
        before = floor(step * share + offset)
        if floor((step + 1) * share + offset) > before:
            return index, before
        step -= before
    raise AssertionError("the last source takes every step that is left")


def cache_permutations(kept: int) -> Callable[[Seed, int], np.ndarray]:
    """(seed, size) -> [size] uint32, a permutation; so many of them are remembered."""

    @lru_cache(maxsize=kept)
    def permutation(seed: Seed, size: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.permutation(np.arange(size, dtype=np.uint32))

    return permutation


def draw_examples(
    permutation: Callable[[Seed, int], np.ndarray],
    seed: Seed,
    turn: int,
    count: int,
    size: int,
) -> np.ndarray:
    """[count] of `size` rows: the next of the epoch's permutation, then of the next's.

    Args:
        permutation: as of `permutations`; the seed of an epoch is (*seed, epoch).
        seed: of this source.
        turn: how many draws were made of this source before.
        count: rows of every draw, at most `size`.
        size: rows that there are.
    """
    epoch, start = divmod(turn * count, size)
    rows = permutation((*seed, epoch), size)[start : start + count]
    if len(rows) < count:
        following = permutation((*seed, epoch + 1), size)
        rows = np.concatenate([rows, following[: count - len(rows)]])
    return rows
