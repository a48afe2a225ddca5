"""What the rows of a pre-training batch hold: each layout is a function of the turn."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from research.data import sampling, spans
from research.data.document_cache import SENTENCE_START, DocumentTable, last_word_start
from research.data.packing import best_fit
from research.types import max_documents


class RowShape(NamedTuple):
    """What all layouts are given.

    Attributes:
        rows: R of a batch.
        length: S, tokens of a row.
        around: special tokens of a text.
        seed: of all that is drawn.
    """

    rows: int
    length: int
    around: int
    seed: sampling.Seed


class BatchLayout(NamedTuple):
    """Where the M texts of a batch come from, and where they go.

    Attributes:
        first: [M] int64, the place of the first token in the table.
        size: [M] int64, tokens without special ones.
        row: [M] the row.
        segment: [M] which text of its row it is, from 1.
        start: [M] the position in the row.
        rows: of the batch.
        length: of a row.
    """

    first: np.ndarray
    size: np.ndarray
    row: np.ndarray
    segment_ids: np.ndarray
    start: np.ndarray
    rows: int
    length: int


LayoutFn = Callable[[int], BatchLayout]


def pack_documents(
    table: DocumentTable, shape: RowShape, *, texts: int | None = None
) -> LayoutFn:
    """Rows of whole documents, or of pieces of those that are longer than a row.

    A document is cut where words begin. The pieces are packed once, best fit first,
    into rows (Ding et al. 2024, "Fewer truncations improve language modeling"), at most
    structs.row_texts(S) in one. Every epoch has another order of the rows; the batch
    at its end is filled up from the next one.

    Args:
        texts: at most so many in a row; 1 pads every text to a row of its own.
    """
    most = max_documents(shape.length)
    if texts is not None and not 1 <= texts <= most:
        raise ValueError(
            f"rows.texts is {texts}; allowed: 1 ... {most} in a row of {shape.length}"
        )
    room = shape.length - shape.around
    first, size = split_documents(table, room)
    packing = best_fit(size + shape.around, shape.length, texts or most)
    if packing.rows < shape.rows:
        raise ValueError(
            f"its documents fill {packing.rows} rows of {shape.length} tokens, fewer "
            f"than one batch of {shape.rows}"
        )
    by_row = np.argsort(packing.row, kind="stable")
    held = np.bincount(packing.row)
    begin = np.cumsum(held) - held
    permutation = sampling.cache_permutations(2)

    def layout(turn: int) -> BatchLayout:
        rows = sampling.draw_examples(
            permutation, shape.seed, turn, shape.rows, packing.rows
        )
        count = held[rows]
        row = np.repeat(np.arange(shape.rows), count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        text = by_row[np.repeat(begin[rows], count) + within]
        return BatchLayout(
            *(first[text], size[text], row, packing.segment_ids[text]),
            *(packing.start[text], shape.rows, shape.length),
        )

    return layout


def split_documents(table: DocumentTable, room: int) -> tuple[np.ndarray, np.ndarray]:
    """(first [M], size [M]) of the documents cut to `room` tokens, at whole words."""
    begin, end = table.starts[:-1], table.starts[1:]
    firsts, ends = [], []
    while len(begin):
        cut = np.minimum(begin + room, end)
        inside = cut < end
        cut[inside] = last_word_start(table, begin[inside], cut[inside])
        firsts.append(begin)
        ends.append(cut)
        begin, end = cut[inside], end[inside]
    first, last = np.concatenate(firsts), np.concatenate(ends)
    return first, last - first


def decompose_documents(
    table: DocumentTable,
    shape: RowShape,
    *,
    shortest: int = 32,
    curriculum: str = "uniform",
    cycle: int = 0,
) -> LayoutFn:
    """Full rows of one document each (dataset decomposition, Pouransari et al. 2024).

    A document is cut into texts of exactly shortest, 2 * shortest ... S tokens, special
    ones included, the longest that fits first; what is left of it is not used. Words
    may be cut. A batch has texts of one length, R * S / length of them; a length with
    fewer than one batch is not used. Within a cycle the next batch is of length b with
    probability o_b n_b / sum_c o_c n_c, where n are the batches of the cycle that are
    left, each length's in proportion to its tokens, and the odds o are 1 for "uniform",
    S / length for "short_to_long".

    Args:
        shortest: tokens, S over a power of two.
        curriculum: one of ODDS.
        cycle: batches; 0 for all of an epoch.
    """
    if curriculum not in ODDS:
        raise ValueError(f"curriculum {curriculum!r}; known: {', '.join(ODDS)}")
    if cycle < 0:
        raise ValueError(f"cycle is {cycle}; it should be a number of batches, or 0")
    buckets = _buckets(table, shape, shortest)
    schedule = _schedule(buckets, shape.seed, ODDS[curriculum], cycle)
    permutation = sampling.cache_permutations(2 * len(buckets))

    def layout(turn: int) -> BatchLayout:
        bucket, turn = schedule(turn)
        length, count, first = buckets[bucket]
        seed = (*shape.seed, bucket)
        text = sampling.draw_examples(permutation, seed, turn, count, len(first))
        return _alone(first[text], np.full(count, length - shape.around), length)

    return layout


class _Bucket(NamedTuple):
    """Texts of `length` tokens, `count` in a batch, from `first` [M] in the table."""

    length: int
    count: int
    first: np.ndarray


def _buckets(table: DocumentTable, shape: RowShape, shortest: int) -> list[_Bucket]:
    """Those that fill a batch, in ascending order of length."""
    lengths = _lengths(shape, shortest)
    firsts = _decomposition(table, [length - shape.around for length in lengths])
    counts = [shape.rows * shape.length // length for length in lengths]
    buckets = map(_Bucket, lengths, counts, firsts)
    full = [bucket for bucket in buckets if bucket.count <= len(bucket.first)]
    if not full:
        raise ValueError(
            f"its documents do not fill one batch of {shape.rows} x {shape.length} "
            f"tokens of any length from {shortest}"
        )
    return full


def _schedule(
    buckets: list[_Bucket],
    seed: sampling.Seed,
    odds: Callable[[int], float],
    cycle: int,
) -> Callable[[int], tuple[int, int]]:
    """turn -> (bucket, how many earlier turns it had), see `decomposed`."""
    batches = [len(bucket.first) / bucket.count for bucket in buckets]
    size = cycle or max(1, round(sum(batches)))
    rates = np.array([odds(bucket.length) for bucket in buckets])
    offsets = np.random.default_rng(seed).random(len(buckets)).tolist()

    @lru_cache(maxsize=2)
    def turns_of(number: int) -> list[tuple[int, int]]:
        steps = range(number * size, (number + 1) * size)
        turns = [sampling.source_step(step, batches, offsets) for step in steps]
        rng = np.random.default_rng((*seed, len(buckets), number))
        # Arrivals at rates o: the first of those left is b with probability ~ o_b n_b.
        arrival = rng.exponential(size=size) / rates[[bucket for bucket, _ in turns]]
        return [turns[i] for i in np.argsort(arrival)]

    return lambda turn: turns_of(turn // size)[turn % size]


def _lengths(shape: RowShape, shortest: int) -> list[int]:
    lengths = [shape.length]
    while lengths[0] > shortest and lengths[0] % 2 == 0:
        lengths.insert(0, lengths[0] // 2)
    if lengths[0] != shortest or shortest <= shape.around:
        raise ValueError(
            f"shortest is {shortest}; it should be max_length {shape.length} over a "
            f"power of two, and more than {shape.around} special tokens"
        )
    return lengths


def _decomposition(table: DocumentTable, sizes: list[int]) -> list[np.ndarray]:
    """[M] int64 first tokens of the texts of every size (ascending), none shared."""
    begin, end = table.starts[:-1], table.starts[1:]
    found = [[] for _ in sizes]
    while len(begin):
        largest = np.searchsorted(sizes, end - begin, side="right") - 1
        begin, end, largest = (x[largest >= 0] for x in (begin, end, largest))
        for size in range(len(sizes)):
            found[size].append(begin[largest == size])
        begin = begin + np.asarray(sizes)[largest]
    return [np.concatenate(first) for first in found]


def _alone(first: np.ndarray, size: np.ndarray, length: int) -> BatchLayout:
    """Every text in a row of its own."""
    count = len(first)
    ones = np.ones(count, np.int64)
    return BatchLayout(first, size, np.arange(count), ones, 0 * ones, count, length)


def draw_spans(
    table: DocumentTable,
    shape: RowShape,
    *,
    kind: str = "cot",
    short: float = 0.15,
    anchors: int = 2,
    positives: int = 2,
    shortest: int = 32,
) -> LayoutFn:
    """Groups of spans, each group of one document, each span in a row of its own.

    "cot": rows 2i and 2i+1 hold two spans of a document, see spans.neighbours.
    "declutr": A anchors, then the P positives of the first anchor, of the second ...,
    see spans.anchors; a row's length is the longest span's. Its ends are moved back to
    where words begin, so that a span may be some tokens shorter or longer.

    Args:
        kind: "cot" or "declutr".
        short: of cot, the probability of a short span.
        anchors, positives: of declutr, A and P.
        shortest: of cot, tokens of a document; of declutr, of a span.
    """
    room = shape.length - shape.around
    if kind not in ("cot", "declutr"):
        raise ValueError(f"unknown spans {kind!r}; known: cot, declutr")
    if anchors < 1 or positives < 1 or not 0 <= short <= 1:
        raise ValueError(
            f"anchors {anchors} and positives {positives} should be at least 1, "
            f"short {short} a probability"
        )
    if not 2 <= shortest <= room:
        raise ValueError(f"shortest is {shortest}; allowed: 2 ... {room}")
    if kind == "cot":
        draw = partial(_neighbours, room=room, short=short)
        return _groups(table, shape, 2, shortest, draw)
    sizes = {"shortest": shortest, "longest": room}
    draw = partial(_anchors, count=anchors, positives=positives, **sizes)
    return _groups(table, shape, anchors * (1 + positives), 2 * anchors * room, draw)


def _groups(
    table: DocumentTable, shape: RowShape, group: int, needed: int, draw: Callable
) -> LayoutFn:
    """Groups of spans, from documents of at least `needed` tokens.

    Args:
        draw: (rng, table, low, high) -> [group, 2] start and end of each span of the
            document [low, high).
    """
    if shape.rows % group:
        raise ValueError(f"batch_size {shape.rows} is not a multiple of {group} spans")
    usable = np.flatnonzero(np.diff(table.starts) >= needed)
    count = shape.rows // group
    if len(usable) < count:
        raise ValueError(
            f"{len(usable)} documents have the {needed} tokens that these spans need, "
            f"fewer than the {count} of a batch"
        )
    permutation = sampling.cache_permutations(2)

    def layout(turn: int) -> BatchLayout:
        picked = sampling.draw_examples(
            permutation, shape.seed, turn, count, len(usable)
        )
        bounds = [table.starts[n : n + 2].tolist() for n in usable[picked]]
        # The permutations' seeds are one number shorter.
        rng = np.random.default_rng((*shape.seed, turn, 0))
        found = np.concatenate([draw(rng, table, *ends) for ends in bounds])
        return _alone(found[:, 0], found[:, 1] - found[:, 0], shape.length)

    return layout


def _neighbours(rng, table: DocumentTable, low: int, high: int, *, room, short):
    marks = table.boundaries[low:high]
    places = (np.flatnonzero(marks), np.flatnonzero(marks & SENTENCE_START))
    words, sentences = (np.append(found, high - low) for found in places)
    return low + np.array(spans.draw_neighbor_spans(rng, words, sentences, room, short))


def _anchors(rng, table: DocumentTable, low: int, high: int, **sizes):
    found = low + spans.draw_anchor_spans(rng, high - low, **sizes)
    return _whole(table, found, high, sizes["longest"])


def _whole(table: DocumentTable, found: np.ndarray, high: int, room: int) -> np.ndarray:
    """Spans [M, 2] with both ends moved back to where a word begins."""
    start, end = found.T
    start = last_word_start(table, start - room, start)
    end = np.minimum(end, start + room)
    end = np.where(end < high, last_word_start(table, start, end), end)
    return np.stack([start, end], 1)


ODDS = {"uniform": lambda length: 1.0, "short_to_long": lambda length: 1.0 / length}
ROW_LAYOUTS = {
    "packed": pack_documents,
    "decomposed": decompose_documents,
    "spans": draw_spans,
}
