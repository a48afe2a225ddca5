"""Batches as a function of the step: mixture, permutation, negatives, packing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, lcm
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data import sampling
from research.data.packing import Packing, best_fit, bucket
from research.data.sources import Source
from research.data.token_cache import PairTable, tokenize_pairs
from research.text.templates import Prompt
from research.types import Batch, Labels, Tokens, max_segments

SAMPLED = 8  # batches packed beforehand, to know how many rows a source needs


class PairSourceState(NamedTuple):
    """A source made ready: its table and the shapes of its batches.

    Attributes:
        name: what the config calls it.
        table: its tokens.
        weight: its share of the steps, relative to the others.
        documents: K, documents of a query.
        length: S, tokens in a row.
        rows: R of an ordinary batch.
        quantum: a fuller batch has a multiple of it more.
    """

    name: str
    table: PairTable
    weight: float
    documents: int
    length: int
    rows: int
    quantum: int


class BatchPlan(NamedTuple):
    """What a batch holds: its examples [B], texts [B, 1+K] and where these went."""

    part: PairSourceState
    examples: np.ndarray
    texts: np.ndarray
    packing: Packing
    rows: int


@dataclass(frozen=True)
class PairBatches:
    """batches(step) -> Batch of NumPy arrays, this host's part; pure in the step."""

    sources: tuple[PairSourceState, ...]
    batch_size: int
    seed: int
    process_index: int
    process_count: int
    permutation: Callable[[sampling.Seed, int], np.ndarray]
    adapters: tuple[str, ...] = ()

    def __call__(self, step: int) -> Batch:
        """The batch of a step: of its rows and its pairs, this host's equal share.

        Indices in `query` and `document` count over the rows of all hosts.
        """
        plan = self.plan(step)
        part, packing = plan.part, plan.packing
        table = part.table
        slot = packing.row * max_segments(part.length) + packing.segment_ids - 1
        slot = slot.reshape(plan.texts.shape).astype(np.int32)
        scored = not np.isnan(table.scores[plan.examples[0]])
        labels = Labels(
            score=self._share(table.scores[plan.examples]) if scored else None,
            query_id=self._share(table.group_hashes[plan.examples]),
            document_id=self._share(table.text_hashes[plan.texts[:, 1:].reshape(-1)]),
        )
        numbers = find_source_adapters(self.adapters, part.name)
        return Batch(
            tokens=_fill(plan, *self._bounds(plan.rows), numbers),
            query_index=self._share(slot[:, 0]),
            document_index=self._share(slot[:, 1:].reshape(-1)),
            labels=labels,
        )

    def source_name(self, step: int) -> str:
        """The name of the source that a step draws from."""
        return self.sources[self._turn(step)[0]].name

    def describe(self) -> dict[str, dict[str, float]]:
        """Sizes of every source: its rows, texts, tokens, and its batches' shapes."""
        total = sum(part.weight for part in self.sources)
        return {
            part.name: {
                "rows": len(part.table.query_text),
                "texts": len(part.table.text_hashes),
                "tokens": len(part.table.token_ids),
                "share": part.weight / total,
                "documents": part.documents,
                "row_length": part.length,
                "batch_rows": part.rows,
            }
            for part in self.sources
        }

    def plan(self, step: int) -> BatchPlan:
        """What the whole batch of a step holds, over all hosts."""
        index, turn = self._turn(step)
        part = self.sources[index]
        examples = self._examples(index, turn)
        rng = np.random.default_rng((self.seed, step))
        texts = _draw(part.table, examples, part.documents, rng)
        packing = _pack(part, texts)
        over = max(0, ceil((packing.rows - part.rows) / part.quantum))
        rows = part.rows + part.quantum * over
        return BatchPlan(part, examples, texts, packing, rows)

    def _turn(self, step: int) -> tuple[int, int]:
        """(the source of a step, how many earlier steps it had)."""
        offsets = np.random.default_rng(self.seed).random(len(self.sources))
        weights = [part.weight for part in self.sources]
        return sampling.source_step(step, weights, offsets.tolist())

    def _examples(self, index: int, turn: int) -> np.ndarray:
        """[B] rows of a source."""
        size = len(self.sources[index].table.query_text)
        seed = (self.seed, index)
        return sampling.draw_examples(
            self.permutation, seed, turn, self.batch_size, size
        )

    def _bounds(self, size: int) -> tuple[int, int]:
        share = size // self.process_count
        return self.process_index * share, (self.process_index + 1) * share

    def _share(self, array: np.ndarray) -> np.ndarray:
        low, high = self._bounds(len(array))
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
    """Batches over a mixture of sources, every batch from one of them.

    Args:
        batch_size: B, queries in a batch over all hosts.
        max_length: tokens that a text is cut to.
        cache: folder of the tokenised sources.
        row_length: tokens in a packed row, raised to one of packing.LENGTHS and to
            the longest text of the source.
        row_multiple: the number of rows R is a multiple of it (and of the hosts).
        prompt: the template that texts are put into, see `tables.tokenise`.
        adapters: the names of several that texts go through, each by its role or its
            source; () leaves that to the encoder.

    Raises:
        ValueError: there is no source, one has no adapter or fewer rows than a batch,
            or the batch cannot be split evenly over the hosts.
    """
    if not sources:
        raise ValueError("there is no data to train on: name at least one source")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be split over {process_count} processes"
        )
    multiple = lcm(row_multiple, process_count)
    parts = []
    for name, source in sources.items():
        find_source_adapters(adapters, name)
        try:
            _check_size(source, batch_size)
            table = tokenize_pairs(source, tokenizer, max_length, cache, prompt)
        except ValueError as error:
            raise ValueError(f"data {name!r}: {error}") from error
        length = bucket(max(row_length, int(np.diff(table.starts).max())))
        part = PairSourceState(
            name, table, source.weight, 1 + source.negatives_per_query, length, 0, 0
        )
        parts.append(_shaped(part, batch_size, multiple))
    permutation = sampling.cache_permutations(2 * len(parts))
    share = (process_index, process_count)
    return PairBatches(
        tuple(parts), batch_size, seed, *share, permutation, tuple(adapters)
    )


def find_source_adapters(names: Sequence[str], source: str) -> tuple[int, int] | None:
    """The numbers of the adapters of a source's queries and of its documents.

    The adapter is that named like the source, or like the role; None without names.

    Raises:
        ValueError: there is neither.
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


def _draw(
    table: PairTable, examples: np.ndarray, documents: int, rng: np.random.Generator
) -> np.ndarray:
    """[B, 1+K] texts: the query, one of its positives, K-1 of its negatives."""
    first = table.query_text[examples]
    positives = table.num_positives[examples]
    chosen = 1 + (rng.random(len(examples)) * positives).astype(np.int64)
    columns = [first[:, None], (first + chosen)[:, None]]
    if documents > 1:
        counts = table.num_negatives[examples]
        begins = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(examples)), counts)
        shuffled = np.lexsort((rng.random(len(owner)), owner))
        picks = shuffled[begins[:, None] + np.arange(documents - 1)[None]]
        columns.append(picks + (first + 1 + positives - begins)[:, None])
    return np.concatenate(columns, axis=1)


def _lengths(table: PairTable, texts: np.ndarray) -> np.ndarray:
    flat = texts.reshape(-1)
    return table.starts[flat + 1] - table.starts[flat]


def _pack(part: PairSourceState, texts: np.ndarray) -> Packing:
    return best_fit(_lengths(part.table, texts), part.length, max_segments(part.length))


def _shaped(part: PairSourceState, batch_size: int, multiple: int) -> PairSourceState:
    """The part with its usual number of rows, so that few shapes compile.

    Half a deviation above the mean of some random batches: two batches of three fit,
    and the others have an eighth more, a second shape to compile. Less padding than one
    shape that all batches fit.
    """
    rng = np.random.default_rng(0)
    used = []
    for _ in range(SAMPLED):
        examples = rng.choice(len(part.table.query_text), batch_size, replace=False)
        texts = _draw(part.table, examples, part.documents, rng)
        used.append(_pack(part, texts).rows)
    rows = multiple * ceil((np.mean(used) + np.std(used) / 2) / multiple)
    return part._replace(rows=rows, quantum=multiple * max(1, rows // 8 // multiple))


def _fill(
    plan: BatchPlan, low: int, high: int, adapters: tuple[int, int] | None
) -> Tokens:
    """The tokens [high - low, S] of the batch's rows low to high."""
    table, packing, length = plan.part.table, plan.packing, plan.part.length
    here = np.flatnonzero((packing.row >= low) & (packing.row < high))
    texts = plan.texts.reshape(-1)[here]
    lengths = _lengths(table, texts)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    begin = (packing.row[here] - low) * length + packing.start[here]
    target = np.repeat(begin, lengths) + within
    ids = np.zeros((high - low) * length, np.int32)
    segment = np.zeros_like(ids)
    origin = np.repeat(table.starts[texts], lengths) + within
    ids[target] = table.token_ids[origin]
    segment[target] = np.repeat(packing.segment_ids[here], lengths)
    pool = segment > 0
    if table.pooling_mask is not None:
        pool[target] = table.pooling_mask[origin]
    shape = (high - low, length)
    ids, segment, pool = (x.reshape(shape) for x in (ids, segment, pool))
    adapter = None
    if adapters is not None:
        query = here % plan.texts.shape[1] == 0
        adapter = np.full(segment.size, -1, np.int32)
        adapter[target] = np.repeat(np.where(query, *adapters), lengths)
        adapter = adapter.reshape(shape)
    return Tokens(ids, segment, pool, adapter)
