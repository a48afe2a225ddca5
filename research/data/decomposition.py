"""Dataset decomposition: rows of one document each, of several lengths.

Pouransari et al. 2024, "Dataset decomposition: faster LLM training with variable
sequence length curriculum".
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from research.data import sampling
from research.data.document_cache import DocumentTable
from research.data.packing import BatchLayout, LayoutFn, RowShape, one_text_per_row

# Odds of a length against others, with as many batches left.
CURRICULA = {
    "uniform": lambda length: 1.0,
    "short_to_long": lambda length: 1.0 / length,
}


class _Bucket(NamedTuple):
    """Texts of one length.

    Attributes:
        length: Tokens of a text, special ones included.
        count: Number of texts in a batch.
        first_token: [M] int64 index of each text's first token in the table.
    """

    length: int
    count: int
    first_token: np.ndarray


def decompose_documents(
    table: DocumentTable,
    shape: RowShape,
    *,
    min_length: int = 32,
    curriculum: str = "uniform",
    cycle: int = 0,
) -> LayoutFn:
    """Full rows of one document each, in batches of one length.

    A document is split into texts of exactly min_length, 2 * min_length ... S tokens,
    special ones included, the longest that fits first; what is left of it is not used.
    Words may be split. A batch has texts of one length, R * S / length of them; a
    length with fewer than one batch is not used. Within a cycle the next batch has
    length b with probability o_b n_b / sum_c o_c n_c, where n are the batches that
    remain in the cycle, each length's in proportion to its tokens, and the odds o are 1
    for "uniform", S / length for "short_to_long".

    Args:
        table: Tokenized documents.
        shape: Rows of a batch of the longest length.
        min_length: Tokens of the shortest texts, S over a power of two.
        curriculum: One of CURRICULA.
        cycle: Number of batches in a cycle; 0 for those of an epoch.
    """
    if curriculum not in CURRICULA:
        raise ValueError(f"curriculum {curriculum!r}; known: {', '.join(CURRICULA)}")
    if cycle < 0:
        raise ValueError(f"cycle is {cycle}; it should be a number of batches, or 0")
    buckets = _fill_buckets(table, shape, min_length)
    schedule = _schedule_buckets(buckets, shape.seed, CURRICULA[curriculum], cycle)
    permute = sampling.cache_permutations(2 * len(buckets))

    def layout(source_step: int) -> BatchLayout:
        index, bucket_step = schedule(source_step)
        length, count, first_token = buckets[index]
        texts = sampling.draw_examples(
            permute, (*shape.seed, index), bucket_step, count, len(first_token)
        )
        num_tokens = np.full(count, length - shape.num_special)
        return one_text_per_row(first_token[texts], num_tokens, length)

    return layout


def _fill_buckets(
    table: DocumentTable, shape: RowShape, min_length: int
) -> list[_Bucket]:
    """The buckets that fill a batch, in ascending order of length."""
    lengths = _bucket_lengths(shape, min_length)
    first_tokens = _split_documents(
        table, [length - shape.num_special for length in lengths]
    )
    counts = [shape.rows * shape.length // length for length in lengths]
    buckets = map(_Bucket, lengths, counts, first_tokens)
    usable = [bucket for bucket in buckets if bucket.count <= len(bucket.first_token)]
    if not usable:
        raise ValueError(
            f"its documents do not fill one batch of {shape.rows} x {shape.length} "
            f"tokens of any length from {min_length}"
        )
    return usable


def _schedule_buckets(
    buckets: list[_Bucket],
    seed: sampling.Seed,
    odds: Callable[[int], float],
    cycle: int,
) -> Callable[[int], tuple[int, int]]:
    """Makes source_step -> (bucket, number of its earlier steps).

    Args:
        buckets: Texts by length.
        seed: Seed of the order of the buckets.
        odds: One of CURRICULA.
        cycle: Number of batches in a cycle; 0 for those of an epoch.
    """
    num_batches = [len(bucket.first_token) / bucket.count for bucket in buckets]
    size = cycle or max(1, round(sum(num_batches)))
    rates = np.array([odds(bucket.length) for bucket in buckets])
    offsets = np.random.default_rng(seed).random(len(buckets)).tolist()

    @lru_cache(maxsize=2)
    def schedule_cycle(number: int) -> list[tuple[int, int]]:
        steps = range(number * size, (number + 1) * size)
        turns = [sampling.source_step(step, num_batches, offsets) for step in steps]
        # The cycle's batches arrive at random with rates o: the first of those that
        # remain is of bucket b with a probability in proportion to o_b n_b.
        rng = np.random.default_rng((*seed, len(buckets), number))
        arrival = rng.exponential(size=size) / rates[[bucket for bucket, _ in turns]]
        return [turns[i] for i in np.argsort(arrival)]

    return lambda source_step: schedule_cycle(source_step // size)[source_step % size]


def _bucket_lengths(shape: RowShape, min_length: int) -> list[int]:
    """Powers of two times `min_length`, up to S."""
    lengths = [shape.length]
    while lengths[0] > min_length and lengths[0] % 2 == 0:
        lengths.insert(0, lengths[0] // 2)
    if lengths[0] != min_length or min_length <= shape.num_special:
        raise ValueError(
            f"min_length is {min_length}; it should be max_length {shape.length} over "
            f"a power of two, and more than {shape.num_special} special tokens"
        )
    return lengths


def _split_documents(table: DocumentTable, sizes: list[int]) -> list[np.ndarray]:
    """[M] int64 first tokens of the texts of every size (ascending), none shared."""
    begin, end = table.starts[:-1], table.starts[1:]
    first_tokens = [[] for _ in sizes]
    while len(begin):
        # The longest size that fits in each document's remaining tokens; -1 for none.
        largest = np.searchsorted(sizes, end - begin, side="right") - 1
        begin, end, largest = (x[largest >= 0] for x in (begin, end, largest))
        for size in range(len(sizes)):
            first_tokens[size].append(begin[largest == size])
        begin = begin + np.asarray(sizes)[largest]
    return [np.concatenate(first) for first in first_tokens]
