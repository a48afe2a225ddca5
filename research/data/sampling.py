"""Sampling as a function of the step: which source and examples a step draws.

No state is kept between steps, so that training can resume at any step with exactly the
batches of an uninterrupted run.
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
    """A mixture of sources, and this process's share of every batch.

    Attributes:
        sources: One entry per source of the config, each with a `name` and a `weight`.
        seed: Seed of the mixture.
        process_index: Index of this process.
        process_count: Number of processes that share a batch.
    """

    sources: tuple[Any, ...]
    seed: int
    process_index: int
    process_count: int

    def find_source(self, step: int) -> tuple[int, int]:
        """(index of the source that a step draws from, number of its earlier steps)."""
        # A random phase for each source, so that they do not all start at step 0.
        offsets = np.random.default_rng(self.seed).random(len(self.sources))
        weights = [source.weight for source in self.sources]
        return source_step(step, weights, offsets.tolist())

    def source_name(self, step: int) -> str:
        """Name of the source that a step draws from."""
        return self.sources[self.find_source(step)[0]].name

    def process_slice(self, size: int) -> tuple[int, int]:
        """(low, high): the range of this process's equal share of `size` rows."""
        share = size // self.process_count
        return self.process_index * share, (self.process_index + 1) * share


def source_step(
    step: int, weights: Sequence[float], offsets: Sequence[float]
) -> tuple[int, int]:
    """(index of the source that a step draws from, number of its earlier steps).

    The first source takes its share of the steps, evenly spaced; the second takes its
    share of the remaining steps, and so on. All counts are in closed form, so that the
    result for a step needs no loop over earlier steps.

    Args:
        step: Step of the training, from 0.
        weights: Shares of the sources, relative to each other.
        offsets: Phase of each source in [0, 1): the position of its first step within
            its interval.
    """
    for index, offset in enumerate(offsets):
        # Its share of the remaining steps, and how many of them it has had so far.
        share = weights[index] / sum(weights[index:])
        earlier = floor(step * share + offset)
        if floor((step + 1) * share + offset) > earlier:
            return index, earlier
        step -= earlier  # the steps that remain for the following sources
    raise AssertionError("the last source takes every remaining step")


def cache_permutations(max_cached: int) -> Callable[[Seed, int], np.ndarray]:
    """Makes a function (seed, size) -> permutation [size] uint32, with a cache.

    Args:
        max_cached: Number of permutations that are kept in memory.
    """

    @lru_cache(maxsize=max_cached)
    def permute(seed: Seed, size: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.permutation(np.arange(size, dtype=np.uint32))

    return permute


def cache_cluster_orders(
    clusters: np.ndarray, batch_size: int, max_cached: int
) -> Callable[[Seed, int], np.ndarray]:
    """Makes a function (seed, size) -> order [size], whose batches are from clusters.

    The examples of a cluster follow each other, clusters are in random order, and the
    batches that they are cut into are shuffled (CDE, Morris and Rush 2024). The last
    examples, fewer than a batch, are left out; they are others for each seed.

    Args:
        clusters: [n] number of each example's cluster.
        batch_size: Number of examples in a batch.
        max_cached: Number of orders that are kept in memory.
    """

    @lru_cache(maxsize=max_cached)
    def order_examples(seed: Seed, size: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        place = rng.permutation(clusters.max() + 1)[clusters]  # [n] of its cluster
        order = np.lexsort((rng.random(len(clusters)), place)).astype(np.uint32)
        # [size / B, B] the batches of the epoch, in random order
        batches = order[:size].reshape(-1, batch_size)
        return rng.permutation(rng.permuted(batches, axis=1)).reshape(-1)

    return order_examples


def draw_examples(
    permute: Callable[[Seed, int], np.ndarray],
    seed: Seed,
    source_step: int,
    count: int,
    size: int,
) -> np.ndarray:
    """Draws [count] indices below `size`, without repetition within an epoch.

    The last draw of an epoch is filled up from the permutation of the next epoch.

    Args:
        permute: Function made by `cache_permutations`. The seed of an epoch is
            (*seed, epoch).
        seed: Seed of the source.
        source_step: Number of earlier draws from this source.
        count: Number of indices in every draw, at most `size`.
        size: Number of examples of the source.
    """
    epoch, start = divmod(source_step * count, size)
    indices = permute((*seed, epoch), size)[start : start + count]
    if len(indices) < count:
        # The epoch ends within this draw.
        next_epoch = permute((*seed, epoch + 1), size)
        indices = np.concatenate([indices, next_epoch[: count - len(indices)]])
    return indices
