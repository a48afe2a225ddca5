"""Sampling as a function of the step: which source a step draws from, which examples.

Nothing is remembered between steps, so training resumes at any step with the batches
that it would have had.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor
from typing import Any

import numpy as np

Seed = tuple[int, ...]


@dataclass(frozen=True)
class SourceMixture:
    """Sources that take turns, and the process's share of every batch.

    Attributes:
        sources: One per source of the config, with at least a `name` and a `weight`.
        seed: Seed of the mixture.
        process_index: Number of this process.
        process_count: Number of processes that share a batch.
    """

    sources: tuple[Any, ...]
    seed: int
    process_index: int
    process_count: int

    def find_source(self, step: int) -> tuple[int, int]:
        """(index of the source that a step draws from, number of its earlier steps)."""
        offsets = np.random.default_rng(self.seed).random(len(self.sources))
        weights = [source.weight for source in self.sources]
        return source_step(step, weights, offsets.tolist())

    def source_name(self, step: int) -> str:
        """Name of the source that a step draws from."""
        return self.sources[self.find_source(step)[0]].name

    def process_slice(self, size: int) -> tuple[int, int]:
        """[low, high) of this process's equal share of `size` rows."""
        share = size // self.process_count
        return self.process_index * share, (self.process_index + 1) * share


def source_step(
    step: int, weights: Sequence[float], offsets: Sequence[float]
) -> tuple[int, int]:
    """(index of the source that a step draws from, number of its earlier steps).

    The first source takes its share of the steps evenly spaced, the second its share
    of the remaining ones, and so on; all counts are in closed form.

    Args:
        step: Step of the training, from 0.
        weights: Shares of the sources, relative to each other.
        offsets: Position in [0, 1) of each source's first step within its interval.
    """
    for index, offset in enumerate(offsets):
        share = weights[index] / sum(weights[index:])
        earlier = floor(step * share + offset)
        if floor((step + 1) * share + offset) > earlier:
            return index, earlier
        step -= earlier  # the steps that remain for the following sources
    raise AssertionError("the last source takes every remaining step")


def cache_permutations(max_cached: int) -> Callable[[Seed, int], np.ndarray]:
    """Makes (seed, size) -> [size] uint32, a permutation; remembers `max_cached`."""

    @lru_cache(maxsize=max_cached)
    def permute(seed: Seed, size: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.permutation(np.arange(size, dtype=np.uint32))

    return permute


def draw_examples(
    permute: Callable[[Seed, int], np.ndarray],
    seed: Seed,
    source_step: int,
    count: int,
    size: int,
) -> np.ndarray:
    """[count] indices below `size`, without repetition within an epoch.

    A draw that ends an epoch is filled up from the permutation of the next one.

    Args:
        permute: Function made by `cache_permutations`; an epoch's seed is
            (*seed, epoch).
        seed: Seed of the source.
        source_step: Number of earlier draws from this source.
        count: Number of indices in every draw, at most `size`.
        size: Number of examples of the source.
    """
    epoch, start = divmod(source_step * count, size)
    indices = permute((*seed, epoch), size)[start : start + count]
    if len(indices) < count:
        next_epoch = permute((*seed, epoch + 1), size)
        indices = np.concatenate([indices, next_epoch[: count - len(indices)]])
    return indices
