"""Dataset decomposition: batches of rows of one length, one document per row.

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

# Relative probability of each length to be drawn next, per remaining batch.
CURRICULA = {
    "uniform": lambda length: 1.0,
    "short_to_long": lambda length: 1.0 / length,
}


class _Bucket(NamedTuple):
    """Texts of one length.

    Attributes:
        length: Number of tokens in a text, special tokens included.
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
    """Rows without padding, one document per row, in batches of one length.

    A document is split into texts of exactly min_length, 2 * min_length ... S tokens,
    special tokens included. The longest length that fits is taken first, words may be
    split, and a rest shorter than min_length is not used. A batch holds R * S / length
    texts of one length; a length with too few texts for one batch is not used.

    The order of the lengths is drawn in cycles. The next batch of a cycle has length b
    with probability o_b n_b / sum_c o_c n_c, where n_b is the number of batches of
    length b that remain in the cycle (in total proportional to the tokens of that
    length), and the odds o_b are 1 for "uniform" and S / b for "short_to_long".

    Args:
        table: Tokenized documents.
        shape: Rows of a batch of the longest length.
        min_length: Number of tokens in the shortest texts: S divided by a power of two.
        curriculum: One of CURRICULA.
        cycle: Number of batches in a cycle; 0 for as many as an epoch has.
    """
    if curriculum not in CURRICULA:
        raise ValueError(f"curriculum {curriculum!r}; known: {', '.join(CURRICULA)}")
    if cycle < 0:
        raise ValueError(f"cycle is {cycle}; it should be a number of batches, or 0")
    # The texts of each length, and the order in which the lengths take their turns.
    buckets = _fill_buckets(table, shape, min_length)
    schedule = _schedule_buckets(buckets, shape.seed, CURRICULA[curriculum], cycle)
    permute = sampling.cache_permutations(2 * len(buckets))

    def layout(source_step: int) -> BatchLayout:
        index, bucket_step = schedule(source_step)
        length, count, first_token = buckets[index]
        # [count] texts of the bucket, each in a row of its own.
        texts = sampling.draw_examples(
            permute, (*shape.seed, index), bucket_step, count, len(first_token)
        )
        num_tokens = np.full(count, length - shape.num_special)
        return one_text_per_row(first_token[texts], num_tokens, length)

    return layout


def _fill_buckets(
    table: DocumentTable, shape: RowShape, min_length: int
) -> list[_Bucket]:
    """The buckets with enough texts for a batch, in ascending order of length."""
    lengths = _bucket_lengths(shape, min_length)
    first_tokens = _split_documents(
        table, [length - shape.num_special for length in lengths]
    )
    # Shorter texts come in larger batches, so that all have the same number of tokens.
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
    """Makes source_step -> (index of a bucket, number of its earlier steps).

    Args:
        buckets: Texts by length.
        seed: Seed of the order of the buckets.
        odds: One of CURRICULA.
        cycle: Number of batches in a cycle; 0 for as many as an epoch has.
    """
    # A bucket takes turns in proportion to its number of batches.
    num_batches = [len(bucket.first_token) / bucket.count for bucket in buckets]
    size = cycle or max(1, round(sum(num_batches)))
    rates = np.array([odds(bucket.length) for bucket in buckets])
    offsets = np.random.default_rng(seed).random(len(buckets)).tolist()

    @lru_cache(maxsize=2)
    def schedule_cycle(number: int) -> list[tuple[int, int]]:
        steps = range(number * size, (number + 1) * size)
        turns = [sampling.source_step(step, num_batches, offsets) for step in steps]
        # Exponential clocks: of the batches that remain, the next one belongs to bucket
        # b with probability proportional to o_b n_b.
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
    """Splits documents into disjoint texts of the given sizes, longest first.

    Args:
        table: Tokenized documents.
        sizes: Numbers of tokens, ascending.

    Returns:
        For each size, [M] int64 index of the first token of each text in the table.
    """
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
