"""Batches of pre-training: rows of documents, as a function of the step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data import sampling
from research.data.document_cache import DocumentTable, tokenize_documents
from research.data.row_packing import BatchLayout, LayoutFn, RowShape
from research.data.sources import Source
from research.text import tokenization
from research.types import PretrainingBatch, Tokens


class DocumentSourceState(NamedTuple):
    """A source made ready.

    Attributes:
        name: what the config calls it.
        table: its tokens.
        weight: its share of the steps, relative to the others.
        layout: what its batch of each turn holds.
    """

    name: str
    table: DocumentTable
    weight: float
    layout: LayoutFn


@dataclass(frozen=True)
class PretrainingBatches:
    """batches(step) -> Rows of NumPy arrays, this host's part; pure in the step.

    Attributes:
        around: the special tokens before and after a text.
    """

    sources: tuple[DocumentSourceState, ...]
    around: tuple[np.ndarray, np.ndarray]
    seed: int
    process_index: int
    process_count: int

    def __call__(self, step: int) -> PretrainingBatch:
        """The rows of a step, this host's equal share of them."""
        part, layout = self._plan(step)
        share = layout.rows // self.process_count
        low = self.process_index * share
        return fill_rows(part.table, layout, self.around, low, low + share)

    def source_name(self, step: int) -> str:
        """The name of the source that a step draws from."""
        return self.sources[self._turn(step)[0]].name

    def _plan(self, step: int) -> tuple[DocumentSourceState, BatchLayout]:
        index, turn = self._turn(step)
        return self.sources[index], self.sources[index].layout(turn)

    def _turn(self, step: int) -> tuple[int, int]:
        offsets = np.random.default_rng(self.seed).random(len(self.sources))
        weights = [part.weight for part in self.sources]
        return sampling.source_step(step, weights, offsets.tolist())


def make_pretraining_batches(
    sources: Mapping[str, Source],
    tokenizer: tokenizers.Tokenizer,
    layout: Callable[[DocumentTable, RowShape], LayoutFn],
    *,
    batch_size: int,
    max_length: int,
    seed: int,
    cache: Path,
    row_multiple: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> PretrainingBatches:
    """Rows of the documents of a mixture of sources, every batch from one of them.

    Args:
        layout: one of layouts.ROWS with its arguments, what a row holds.
        batch_size: R, rows of a batch over all hosts.
        max_length: S, tokens of a row.
        cache: folder of the tokenised sources.
        row_multiple: R should be a multiple of it.

    Raises:
        ValueError: there is no source, one has too few documents for a batch, or the
            batch cannot be split evenly over hosts, devices and micro-batches.
    """
    if not sources:
        raise ValueError("there is no data to train on: name at least one source")
    multiple = lcm(row_multiple, process_count)
    if batch_size < 1 or batch_size % multiple:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of {multiple}: the rows are "
            "split evenly over processes, devices and micro-batches"
        )
    around = tokenization.enclosing_tokens(tokenizer)
    special = sum(map(len, around))
    if max_length <= special:
        raise ValueError(
            f"max_length {max_length} leaves no room beside {special} special tokens"
        )
    parts = []
    for index, (name, source) in enumerate(sources.items()):
        shape = RowShape(batch_size, max_length, special, (seed, index))
        try:
            table = tokenize_documents(source, tokenizer, cache)
            parts.append(
                DocumentSourceState(name, table, source.weight, layout(table, shape))
            )
        except ValueError as error:
            raise ValueError(f"data {name!r}: {error}") from error
    return PretrainingBatches(tuple(parts), around, seed, process_index, process_count)


def fill_rows(
    table: DocumentTable,
    layout: BatchLayout,
    around: tuple[np.ndarray, np.ndarray],
    low: int,
    high: int,
) -> PretrainingBatch:
    """Rows low to high of a batch: [high - low, S].

    Args:
        around: the special tokens before and after every text.
    """
    here = np.flatnonzero((layout.row >= low) & (layout.row < high))
    first, size, segment = (
        layout.first[here],
        layout.size[here],
        layout.segment_ids[here],
    )
    begin = (layout.row[here] - low) * layout.length + layout.start[here]
    before, after = around
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    source = np.repeat(first, size) + within
    target = np.repeat(begin + len(before), size) + within
    count = (high - low) * layout.length
    ids, segments, begins = (np.zeros(count, np.int32) for _ in range(3))
    ids[target] = table.token_ids[source]
    segments[target] = np.repeat(segment, size)
    opening = begin[:, None] + np.arange(len(before))
    closing = (begin + len(before) + size)[:, None] + np.arange(len(after))
    for places, special in ((opening, before), (closing, after)):
        ids[places] = special
        segments[places] = segment[:, None]
    begins[target] = table.boundaries[source] > 0
    begins[begin + len(before)] = 1  # a text may begin within a word
    words = np.cumsum(begins.reshape(-1, layout.length), axis=1, dtype=np.int32)
    inside = np.zeros(count, bool)
    inside[target] = True
    shape = (high - low, layout.length)
    segments = segments.reshape(shape)
    tokens = Tokens(ids.reshape(shape), segments, segments > 0)
    return PretrainingBatch(tokens, np.where(inside.reshape(shape), words, 0))
