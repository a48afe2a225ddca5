"""Row layouts whose rows hold one span of a document each, for CoT-MAE and DeCLUTR."""

from collections.abc import Callable

import numpy as np

from research.data import sampling, spans
from research.data.document_cache import SENTENCE_START, DocumentTable, last_word_start
from research.data.packing import BatchLayout, LayoutFn, RowShape, one_text_per_row

# (rng, low, high) -> [G, 2] start and end of G spans of the document [low, high).
DrawSpans = Callable[[np.random.Generator, int, int], np.ndarray]


def draw_spans(
    table: DocumentTable,
    shape: RowShape,
    *,
    kind: str = "cot",
    short_probability: float = 0.15,
    anchors: int = 2,
    positives: int = 2,
    min_length: int = 32,
) -> LayoutFn:
    """Groups of spans, each group from one document and each span in its own row.

    "cot": rows 2i and 2i+1 hold two spans of a document; see spans.draw_neighbor_spans.

    "declutr": a group holds A anchors, then the P positives of the first anchor, of the
    second, and so on; see spans.draw_anchor_spans. The longest span fills a row. Both
    ends of a span are moved back to the start of a word, so that it may become a few
    tokens shorter or longer.

    Args:
        table: Tokenized documents.
        shape: Shape of a batch.
        kind: "cot" or "declutr".
        short_probability: Probability of a short span, for "cot".
        anchors: A, number of anchors per document, for "declutr".
        positives: P, number of positives per anchor, for "declutr".
        min_length: Minimum number of tokens: of a document for "cot", of a span for
            "declutr".
    """
    max_tokens = shape.length - shape.num_special
    if kind not in ("cot", "declutr"):
        raise ValueError(f"unknown spans {kind!r}; known: cot, declutr")
    if anchors < 1 or positives < 1 or not 0 <= short_probability <= 1:
        raise ValueError(
            f"anchors {anchors} and positives {positives} should be at least 1, "
            f"short_probability {short_probability} a probability"
        )
    if not 2 <= min_length <= max_tokens:
        raise ValueError(f"min_length is {min_length}; allowed: 2 ... {max_tokens}")
    # CoT-MAE: two neighboring spans.
    if kind == "cot":

        def draw_neighbors(rng, low: int, high: int) -> np.ndarray:
            # Positions in the document of words and sentences, and its end.
            boundaries = table.boundaries[low:high]
            words = np.flatnonzero(boundaries)
            sentences = np.flatnonzero(boundaries & SENTENCE_START)
            words, sentences = (np.append(x, high - low) for x in (words, sentences))
            pair = spans.draw_neighbor_spans(
                rng, words, sentences, max_tokens, short_probability
            )
            return low + np.array(pair)

        return _draw_groups(table, shape, 2, min_length, draw_neighbors)

    # DeCLUTR: anchors and their positives.
    def draw_anchors(rng, low: int, high: int) -> np.ndarray:
        group = low + spans.draw_anchor_spans(
            rng,
            high - low,
            count=anchors,
            positives=positives,
            min_length=min_length,
            max_length=max_tokens,
        )
        return _move_to_words(table, group, high, max_tokens)

    size = anchors * (1 + positives)
    return _draw_groups(table, shape, size, 2 * anchors * max_tokens, draw_anchors)


def _draw_groups(
    table: DocumentTable,
    shape: RowShape,
    group_size: int,
    min_tokens: int,
    draw_group: DrawSpans,
) -> LayoutFn:
    """The layout of groups of spans, drawn anew for every step.

    Args:
        table: Tokenized documents.
        shape: Shape of a batch.
        group_size: Number of spans per group.
        min_tokens: Minimum number of tokens of a document.
        draw_group: Function that draws the spans of a document.
    """
    if shape.rows % group_size:
        raise ValueError(
            f"batch_size {shape.rows} is not a multiple of {group_size} spans"
        )
    usable = np.flatnonzero(np.diff(table.starts) >= min_tokens)
    count = shape.rows // group_size  # documents in a batch
    if len(usable) < count:
        raise ValueError(
            f"{len(usable)} documents have the {min_tokens} tokens that these spans "
            f"need, fewer than the {count} of a batch"
        )
    permute = sampling.cache_permutations(2)

    def layout(source_step: int) -> BatchLayout:
        indices = sampling.draw_examples(
            permute, shape.seed, source_step, count, len(usable)
        )
        bounds = [table.starts[n : n + 2].tolist() for n in usable[indices]]
        # One number more than the seeds of the permutations, so that none is equal.
        rng = np.random.default_rng((*shape.seed, source_step, 0))
        groups = [draw_group(rng, low, high) for low, high in bounds]
        starts, ends = np.concatenate(groups).T  # [R] each
        return one_text_per_row(starts, ends - starts, shape.length)

    return layout


def _move_to_words(
    table: DocumentTable, group: np.ndarray, high: int, max_tokens: int
) -> np.ndarray:
    """Spans [G, 2] with both ends moved back to the start of a word."""
    start, end = group.T
    start = last_word_start(table, start - max_tokens, start)
    end = np.minimum(end, start + max_tokens)
    end = np.where(end < high, last_word_start(table, start, end), end)
    return np.stack([start, end], 1)
