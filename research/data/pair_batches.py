"""Batches of pairs for contrastive training, as a function of the step.

A step draws from one source of the mixture: examples in the order of a permutation, and
for each a positive and hard negatives. All texts are packed into rows of fixed length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data import sampling
from research.data.packing import Packing, best_fit, bucket_length, token_offsets
from research.data.pair_cache import PairTable, tokenize_pairs
from research.data.sources import Source
from research.text.templates import Prompt
from research.types import Batch, Labels, Tokens, max_segments

TRIAL_BATCHES = 8  # batches that are packed to find how many rows a source needs


class PairSourceState(NamedTuple):
    """A tokenized source and the shapes of its batches.

    Attributes:
        name: Name of the source in the config.
        table: Tokens of the source's texts.
        weight: Share of the steps, relative to the other sources.
        docs_per_query: K, number of documents per query: the positive and the hard
            negatives.
        length: S, number of tokens in a row.
        rows: R, number of rows in a usual batch.
        row_increment: Batches that need more rows grow by multiples of this number.
    """

    name: str
    table: PairTable
    weight: float
    docs_per_query: int
    length: int
    rows: int
    row_increment: int


class BatchPlan(NamedTuple):
    """The contents of a batch over all processes.

    Attributes:
        source: Source of all examples of the batch.
        examples: [B] indices of the examples.
        texts: [B, 1+K] indices of each query and its documents in the source's table.
        packing: Row and position of each of these B*(1+K) texts.
        rows: R, number of rows in the batch.
    """

    source: PairSourceState
    examples: np.ndarray
    texts: np.ndarray
    packing: Packing
    rows: int


@dataclass(frozen=True)
class PairBatches(sampling.SourceMixture):
    """A callable: batches(step) -> this process's share of a Batch of NumPy arrays.

    Attributes:
        sources: One PairSourceState per source.
        batch_size: B, number of queries in a batch over all processes.
        permute: Permutations of a source's examples; see sampling.cache_permutations.
        adapters: Names of the adapters that embed the texts; () for a single one.
    """

    sources: tuple[PairSourceState, ...]
    batch_size: int
    permute: Callable[[sampling.Seed, int], np.ndarray]
    adapters: tuple[str, ...] = ()

    def __call__(self, step: int) -> Batch:
        """The batch of a step: this process's equal share of its rows and pairs.

        `query_index` and `document_index` count over the rows of all processes.
        """
        plan = self.plan_batch(step)
        source, packing = plan.source, plan.packing
        table = source.table
        # Index of each text's vector, if every row has max_segments of them: [B, 1+K].
        vectors = packing.row * max_segments(source.length) + packing.segment_ids - 1
        vectors = vectors.reshape(plan.texts.shape).astype(np.int32)
        # Labels: graded scores if the source has them, and ids to find equal texts.
        has_scores = not np.isnan(table.scores[plan.examples[0]])
        scores = self._take_share(table.scores[plan.examples]) if has_scores else None
        labels = Labels(
            score=scores,
            query_id=self._take_share(table.group_hashes[plan.examples]),
            document_id=self._take_share(
                table.text_hashes[plan.texts[:, 1:].reshape(-1)]
            ),
        )
        adapters = find_source_adapters(self.adapters, source.name)
        return Batch(
            tokens=_fill_rows(plan, *self.process_slice(plan.rows), adapters),
            query_index=self._take_share(vectors[:, 0]),
            document_index=self._take_share(vectors[:, 1:].reshape(-1)),
            labels=labels,
        )

    def plan_batch(self, step: int) -> BatchPlan:
        """Draws and packs the texts of a step's batch over all processes."""
        index, source_step = self.find_source(step)
        source = self.sources[index]
        examples = sampling.draw_examples(
            self.permute,
            (self.seed, index),
            source_step,
            self.batch_size,
            len(source.table.query_text),
        )
        # [B, 1+K] texts: every process draws the same ones.
        rng = np.random.default_rng((self.seed, step))
        texts = _draw_texts(source.table, examples, source.docs_per_query, rng)
        packing = _pack_texts(source, texts)
        # A batch that does not fit grows in large steps, so that few shapes compile.
        excess = max(0, packing.rows - source.rows)
        rows = source.rows + source.row_increment * ceil(excess / source.row_increment)
        return BatchPlan(source, examples, texts, packing, rows)

    def _take_share(self, array: np.ndarray) -> np.ndarray:
        """This process's equal share of an array's first axis."""
        low, high = self.process_slice(len(array))
        return np.ascontiguousarray(array[low:high])


def make_pair_batches(
    sources: Mapping[str, Source],
    tokenizer: tokenizers.Tokenizer,
    *,
    batch_size: int,
    max_length: int,
    seed: int,
    cache: Path,
    row_length: int = 128,
    row_multiple: int = 1,
    prompt: Prompt | None = None,
    process_index: int = 0,
    process_count: int = 1,
    adapters: Sequence[str] = (),
) -> PairBatches:
    """Batches from a mixture of sources; each batch draws from one source.

    Args:
        sources: Sources by their names.
        tokenizer: Tokenizer of the model.
        batch_size: B, number of queries in a batch over all processes.
        max_length: Maximum number of tokens; longer texts are cut.
        seed: Seed of the mixture, the permutations and the draws.
        cache: Folder of the tokenized sources.
        row_length: Number of tokens in a packed row. It is raised to the longest text
            of the source, and then to one of packing.LENGTHS.
        row_multiple: The number of rows R is a multiple of this number and of the
            number of processes.
        prompt: Prompt template for the texts; see `tokenize_pairs`.
        process_index: Index of this process.
        process_count: Number of processes that share a batch.
        adapters: Names of several adapters; each text is embedded with the adapter of
            its source or of its role. () leaves the choice to the encoder.

    Raises:
        ValueError: There is no source, one has no adapter or fewer examples than a
            batch, or the batch cannot be split evenly over the processes.
    """
    if not sources:
        raise ValueError("there is no data to train on: name at least one source")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be split over {process_count} processes"
        )
    # Tokenize every source, and choose the shapes of its batches.
    multiple = lcm(row_multiple, process_count)
    states = []
    for name, source in sources.items():
        find_source_adapters(adapters, name)  # reports a missing one
        try:
            _check_size(source, batch_size)
            table = tokenize_pairs(source, tokenizer, max_length, cache, prompt)
        except ValueError as error:
            raise ValueError(f"data {name!r}: {error}") from error
        # Rows are at least as long as the longest text, so that no text is cut again.
        longest = int(np.diff(table.starts).max())
        state = PairSourceState(
            name=name,
            table=table,
            weight=source.weight,
            docs_per_query=1 + source.negatives_per_query,
            length=bucket_length(max(row_length, longest)),
            rows=0,
            row_increment=0,
        )
        states.append(_set_rows(state, batch_size, multiple))
    return PairBatches(
        sources=tuple(states),
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        batch_size=batch_size,
        # Two per source: the last batch of an epoch also draws from the next epoch.
        permute=sampling.cache_permutations(2 * len(states)),
        adapters=tuple(adapters),
    )


def find_source_adapters(names: Sequence[str], source: str) -> tuple[int, int] | None:
    """Indices of the adapters for a source's queries and for its documents.

    An adapter with the name of the source serves both roles; otherwise those named
    "query" and "document" serve one role each.

    Args:
        names: Names of the adapters.
        source: Name of the source.

    Returns:
        (query adapter, document adapter), or None if there are no names.

    Raises:
        ValueError: The names serve neither the source nor both roles.
    """
    if not names:
        return None
    numbers = {name: number for number, name in enumerate(names)}
    if source in numbers:
        return numbers[source], numbers[source]
    if "query" in numbers and "document" in numbers:
        return numbers["query"], numbers["document"]
    raise ValueError(
        f"the adapters {', '.join(names)} (tuning.adapters) serve neither the data "
        f"{source!r} nor the roles query and document"
    )


def _check_size(source: Source, batch_size: int) -> None:
    if len(source.examples) < batch_size:
        raise ValueError(
            f"{len(source.examples)} rows are fewer than one batch of {batch_size}"
        )


def _draw_texts(
    table: PairTable,
    examples: np.ndarray,
    docs_per_query: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws [B, 1+K] texts: each query, one of its positives, K-1 of its negatives."""
    query = table.query_text[examples]  # [B]
    num_positives = table.num_positives[examples]  # [B]
    positive = query + 1 + (rng.random(len(examples)) * num_positives).astype(np.int64)
    columns = [query[:, None], positive[:, None]]
    if docs_per_query > 1:
        # Negatives: shuffle those of each example, and take the first K-1.
        counts = table.num_negatives[examples]  # [B]
        begins = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(examples)), counts)  # [all negatives]
        shuffled = np.lexsort((rng.random(len(owner)), owner))
        picks = shuffled[begins[:, None] + np.arange(docs_per_query - 1)[None]]
        columns.append(picks + (query + 1 + num_positives - begins)[:, None])
    return np.concatenate(columns, axis=1)


def _text_lengths(table: PairTable, texts: np.ndarray) -> np.ndarray:
    """Number of tokens of each of M texts: [M]."""
    return table.starts[texts + 1] - table.starts[texts]


def _pack_texts(source: PairSourceState, texts: np.ndarray) -> Packing:
    lengths = _text_lengths(source.table, texts.reshape(-1))
    return best_fit(lengths, source.length, max_segments(source.length))


def _set_rows(
    source: PairSourceState, batch_size: int, multiple: int
) -> PairSourceState:
    """Sets the number of rows of a usual batch, so that few shapes compile.

    The number is half a standard deviation above the mean of some random batches. Two
    batches out of three fit; the others have an eighth more rows, a second shape to
    compile. This gives less padding than one shape in which all batches fit.
    """
    # Rows that each trial batch needs.
    rng = np.random.default_rng(0)
    used = []
    for _ in range(TRIAL_BATCHES):
        size = len(source.table.query_text)
        examples = rng.choice(size, batch_size, replace=False)
        texts = _draw_texts(source.table, examples, source.docs_per_query, rng)
        used.append(_pack_texts(source, texts).rows)
    rows = multiple * ceil((np.mean(used) + np.std(used) / 2) / multiple)
    increment = multiple * max(1, rows // 8 // multiple)
    return source._replace(rows=rows, row_increment=increment)


def _fill_rows(
    plan: BatchPlan, low: int, high: int, adapters: tuple[int, int] | None
) -> Tokens:
    """The tokens [high - low, S] of the batch's rows low to high.

    Args:
        plan: The contents of the batch.
        low: First row.
        high: Row after the last one.
        adapters: Indices of the adapters for queries and documents; None for a single
            adapter.
    """
    table, packing, length = plan.source.table, plan.packing, plan.source.length
    # The M texts of these rows, and the position in its text of each of their T tokens.
    placed = np.flatnonzero((packing.row >= low) & (packing.row < high))  # [M]
    texts = plan.texts.reshape(-1)[placed]
    lengths = _text_lengths(table, texts)
    offsets = token_offsets(lengths)  # [T]
    begin = (packing.row[placed] - low) * length + packing.start[placed]  # [M]
    target = np.repeat(begin, lengths) + offsets  # [T] in the batch
    origin = np.repeat(table.starts[texts], lengths) + offsets  # [T] in the table
    # Copy the tokens from the table; all other positions are padding, with segment 0.
    shape = (high - low, length)
    token_ids = np.zeros((high - low) * length, np.int32)
    segment_ids = np.zeros_like(token_ids)
    token_ids[target] = table.token_ids[origin]
    segment_ids[target] = np.repeat(packing.segment_ids[placed], lengths)
    pooling_mask = segment_ids > 0
    if table.pooling_mask is not None:
        pooling_mask[target] = table.pooling_mask[origin]
    # An adapter per token; -1 for padding.
    adapter_ids = None
    if adapters is not None:
        is_query = placed % plan.texts.shape[1] == 0  # texts are [B, 1+K], flat
        adapter_ids = np.full(segment_ids.size, -1, np.int32)
        adapter_ids[target] = np.repeat(np.where(is_query, *adapters), lengths)
        adapter_ids = adapter_ids.reshape(shape)
    arrays = (token_ids, segment_ids, pooling_mask)
    return Tokens(*(array.reshape(shape) for array in arrays), adapter_ids)
