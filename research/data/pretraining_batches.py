"""Batches of documents for pre-training, as a function of the step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data import sampling
from research.data.document_cache import DocumentTable, tokenize_documents
from research.data.packing import BatchLayout, LayoutFn, RowShape, token_offsets
from research.data.sources import Source
from research.text import tokenization
from research.types import PretrainingBatch, Tokens

SpecialTokens = tuple[np.ndarray, np.ndarray]  # ids before and after a text


class DocumentSourceState(NamedTuple):
    """A tokenized source and the layout of its batches.

    Attributes:
        name: Name of the source in the config.
        table: Tokens of the source's documents.
        weight: Share of the steps, relative to the other sources.
        layout: Function from the source's step to the layout of its batch.
    """

    name: str
    table: DocumentTable
    weight: float
    layout: LayoutFn


@dataclass(frozen=True)
class PretrainingBatches(sampling.SourceMixture):
    """A callable: batches(step) -> this process's share of a PretrainingBatch.

    Attributes:
        sources: One DocumentSourceState per source.
        special_tokens: Ids of the special tokens before and after every text.
    """

    sources: tuple[DocumentSourceState, ...]
    special_tokens: SpecialTokens

    def __call__(self, step: int) -> PretrainingBatch:
        """The batch of a step: this process's equal share of its rows, in NumPy."""
        index, source_step = self.find_source(step)
        source = self.sources[index]
        layout = source.layout(source_step)
        rows = self.process_slice(layout.rows)
        return fill_rows(source.table, layout, self.special_tokens, *rows)


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
    """Batches of documents from a mixture of sources; each draws from one source.

    Args:
        sources: Sources by their names.
        tokenizer: Tokenizer of the model.
        layout: One of row_packing.ROW_LAYOUTS with its keyword arguments bound.
        batch_size: R, number of rows in a batch over all processes.
        max_length: S, number of tokens in a row.
        seed: Seed of the mixture and the layouts.
        cache: Folder of the tokenized sources.
        row_multiple: Number that R must be a multiple of.
        process_index: Index of this process.
        process_count: Number of processes that share a batch.

    Raises:
        ValueError: There is no source, one has too few documents for a batch, or the
            batch cannot be split evenly over processes, devices and micro-batches.
    """
    if not sources:
        raise ValueError("there is no data to train on: name at least one source")
    multiple = lcm(row_multiple, process_count)
    if batch_size < 1 or batch_size % multiple:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of {multiple}: the rows are "
            "split evenly over processes, devices and micro-batches"
        )
    special_tokens = tokenization.enclosing_tokens(tokenizer)
    num_special = sum(map(len, special_tokens))
    if max_length <= num_special:
        raise ValueError(
            f"max_length {max_length} leaves no room beside {num_special} special "
            "tokens"
        )
    # Tokenize every source and lay out its rows.
    states = []
    for index, (name, source) in enumerate(sources.items()):
        shape = RowShape(batch_size, max_length, num_special, (seed, index))
        try:
            table = tokenize_documents(source, tokenizer, cache)
            source_layout = layout(table, shape)
        except ValueError as error:
            raise ValueError(f"data {name!r}: {error}") from error
        states.append(DocumentSourceState(name, table, source.weight, source_layout))
    return PretrainingBatches(
        sources=tuple(states),
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        special_tokens=special_tokens,
    )


def fill_rows(
    table: DocumentTable,
    layout: BatchLayout,
    special_tokens: SpecialTokens,
    low: int,
    high: int,
) -> PretrainingBatch:
    """Fills the rows low to high of a batch: [high - low, S].

    Args:
        table: Tokenized documents.
        layout: The texts of the batch, with their rows and positions.
        special_tokens: Ids of the special tokens before and after every text.
        low: First row.
        high: Row after the last one.
    """
    # The M texts of these rows, and the position in its text of each of their T tokens.
    texts = np.flatnonzero((layout.row >= low) & (layout.row < high))  # [M]
    num_tokens = layout.num_tokens[texts]
    segments = layout.segment_ids[texts]
    begin = (layout.row[texts] - low) * layout.length + layout.start[texts]  # [M]
    before, after = special_tokens
    offsets = token_offsets(num_tokens)  # [T]
    origin = np.repeat(layout.first_token[texts], num_tokens) + offsets  # in the table
    target = np.repeat(begin + len(before), num_tokens) + offsets  # in the batch
    # Copy the texts, then put their special tokens around them.
    size = (high - low) * layout.length
    token_ids, segment_ids, word_starts = (np.zeros(size, np.int32) for _ in range(3))
    token_ids[target] = table.token_ids[origin]
    segment_ids[target] = np.repeat(segments, num_tokens)
    opening = begin[:, None] + np.arange(len(before))
    closing = (begin + len(before) + num_tokens)[:, None] + np.arange(len(after))
    for positions, tokens in ((opening, before), (closing, after)):
        token_ids[positions] = tokens
        segment_ids[positions] = segments[:, None]
    # Words are numbered in each row; special tokens and padding have number 0.
    word_starts[target] = table.boundaries[origin] > 0
    word_starts[begin + len(before)] = 1  # a text may begin within a word
    # [high - low, S] arrays from the flat ones.
    shape = (high - low, layout.length)
    words = np.cumsum(word_starts.reshape(shape), axis=1, dtype=np.int32)
    is_text = np.zeros(size, bool)
    is_text[target] = True
    word_ids = np.where(is_text.reshape(shape), words, 0)
    segment_ids = segment_ids.reshape(shape)
    tokens = Tokens(token_ids.reshape(shape), segment_ids, segment_ids > 0)
    return PretrainingBatch(tokens, word_ids)
