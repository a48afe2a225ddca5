"""Batches of pairs for contrastive training, as a function of the step.

A step draws from one source of the mixture: examples in the order of a permutation, and
for each a positive and hard negatives. The pairs are dealt to the devices, and each
device's texts are packed into its own rows of fixed length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from research.data import sampling
from research.data.packing import bucket_length
from research.data.pairs.clusters import cluster_examples
from research.data.pairs.pair_cache import PairTable, tokenize_pairs
from research.data.pairs.pair_labels import read_labels
from research.data.pairs.pair_rows import (
    BatchPlan,
    PairSourceState,
    count_device_bins,
    draw_source_texts,
    fill_rows,
    index_vectors,
    pack_texts,
    place_bins,
    plan_teacher,
    set_rows,
)
from research.data.pairs.refreshed_negatives import RefreshedNegatives
from research.data.pairs.teacher_texts import Teacher, add_teacher
from research.data.pairs.text_vectors import TextVectors
from research.data.pairs.walks import cache_walks
from research.data.sources import Source
from research.text.templates import Prompt
from research.types import Batch, TeacherTexts


@dataclass(frozen=True)
class PairBatches(sampling.SourceMixture):
    """A callable: batches(step) -> this process's share of a Batch of NumPy arrays.

    Attributes:
        sources: One PairSourceState per source.
        batch_size: B, number of queries in a batch over all processes.
        bins: Number of bins of pairs that are packed separately, a multiple of the
            number of devices.
        orders: For each source, a function (seed, size) -> order of its examples in an
            epoch, as sampling.cache_permutations or walks.cache_walks makes it.
        adapters: Names of the adapters that embed the texts; () for a single one.
        steps: Number of steps of the run, for the labels' progress; 0 leaves it out.
    """

    sources: tuple[PairSourceState, ...]
    batch_size: int
    bins: int
    orders: tuple[Callable[[sampling.Seed, int], np.ndarray], ...]
    adapters: tuple[str, ...] = ()
    steps: int = 0

    def __call__(self, step: int) -> Batch:
        """The batch of a step: this process's equal share of its rows and pairs.

        `query_index` and `document_index` count over the rows of all processes, and
        point to rows of the device that has the pair.
        """
        plan = self.plan_batch(step)
        vectors = index_vectors(plan)  # [B, 1+K]
        low, high = self.process_slice(self.batch_size)
        labels = read_labels(plan.source, plan.examples[low:high], plan.texts[low:high])
        teacher = None
        if plan.source.teacher is not None:
            teacher = self._make_teacher_texts(plan)
        adapters = find_source_adapters(self.adapters, plan.source.name)
        return Batch(
            tokens=fill_rows(plan, *self.process_slice(plan.rows), adapters),
            query_index=self._take_share(vectors[:, 0]),
            document_index=self._take_share(vectors[:, 1:].reshape(-1)),
            labels=labels._replace(
                progress=self._find_progress(step), draw=self._draw_number(step)
            ),
            teacher=teacher,
        )

    def plan_batch(self, step: int) -> BatchPlan:
        """Draws and packs the texts of a step's batch over all processes."""
        index, source_step = self.find_source(step)
        source = self.sources[index]
        size = len(source.table.query_text)
        if source.clusters is not None:  # an epoch has full batches only
            size -= size % self.batch_size
        examples = sampling.draw_examples(
            self.orders[index], (self.seed, index), source_step, self.batch_size, size
        )
        # A walk is [n, K], of examples and the negatives that it went by
        negatives = None
        if source.has_walk:
            examples, negatives = examples[:, 0], examples[:, 1:]
        # [B, 1+K] texts: every process draws the same ones.
        rng = np.random.default_rng((self.seed, step))
        texts = draw_source_texts(source, examples, step, rng, negatives=negatives)
        order, packing = pack_texts(source, texts, self.bins)
        flat = place_bins(source, packing)
        return BatchPlan(source, examples[order], texts[order], flat, flat.rows)

    def _make_teacher_texts(self, plan: BatchPlan) -> TeacherTexts:
        """This process's share of the batch's texts, in the tokens of the teacher."""
        plan = plan_teacher(plan, self.bins)
        vectors = index_vectors(plan)  # [B, 1+K]
        return TeacherTexts(
            tokens=fill_rows(plan, *self.process_slice(plan.rows), None),
            query_index=self._take_share(vectors[:, 0]),
            document_index=self._take_share(vectors[:, 1:].reshape(-1)),
        )

    def _find_progress(self, step: int) -> np.ndarray | None:
        """[B] the part of the run that is done, for this process's pairs."""
        if not self.steps:
            return None
        progress = np.full(self.batch_size, step / self.steps, np.float32)
        return self._take_share(progress)

    def _draw_number(self, step: int) -> np.ndarray:
        """[B] a random number of the step, repeated for this process's pairs."""
        number = np.random.SeedSequence((self.seed, step)).generate_state(1)
        return self._take_share(np.repeat(number, self.batch_size))

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
    devices: int = 1,
    min_chunks: int = 1,
    prompt: Prompt | None = None,
    process_index: int = 0,
    process_count: int = 1,
    adapters: Sequence[str] = (),
    refreshed: Mapping[str, RefreshedNegatives] = {},
    data_exponent: float = 0.0,
    steps: int = 0,
    cluster_vectors: Mapping[str, Sequence[TextVectors]] = {},
    teacher: Teacher | None = None,
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
        devices: Number of devices that share a batch, over all processes. Each one gets
            as many pairs as the others, and as many rows.
        min_chunks: Each device's rows divide evenly into so many chunks, or into a few
            more where that leaves less padding.
        prompt: Prompt template for the texts; see `tokenize_pairs`.
        process_index: Index of this process.
        process_count: Number of processes that share a batch.
        adapters: Names of several adapters; each text is embedded with the adapter of
            its source or of its role. () leaves the choice to the encoder.
        refreshed: {source: files of its hard negatives} of those that the run mines.
        data_exponent: The weight of a source is multiplied by its number of examples to
            this power.
        steps: Number of steps of the run; 0 if it is not known.
        cluster_vectors: {source: vectors of its texts} of those whose batches are drawn
            within clusters; see `cluster_examples`.
        teacher: Vectors of a teacher for the labels, or a teacher that embeds the texts
            within the step.

    Raises:
        ValueError: There is no source, one has no adapter, fewer examples than a batch
            or vectors that do not fit or are missing, or the batch cannot be split
            evenly over the devices.
    """
    if not sources:
        raise ValueError("there is no data to train on: name at least one source")
    if batch_size < 1 or batch_size % devices:
        raise ValueError(
            f"batch_size {batch_size} cannot be split evenly over {devices} devices"
        )
    # Each device packs its pairs in one or several bins
    device_bins = count_device_bins(batch_size // devices)
    bins = devices * device_bins
    # Tokenize every source, and choose the shapes of its batches.
    states, orders = [], []
    for name, source in sources.items():
        find_source_adapters(adapters, name)  # reports a missing one
        try:
            _check_size(source, batch_size)
            table = tokenize_pairs(source, tokenizer, max_length, cache, prompt)
            clusters = None
            if files := cluster_vectors.get(name):
                clusters = cluster_examples(source, table, files, cache)
            mined = refreshed.get(name)
            negatives = mined.count if mined else source.negatives_per_query
            # Two orders: the last batch of an epoch also draws from the next epoch
            order = _make_order(source, table, negatives, batch_size, clusters, mined)
            orders.append(order)
        except ValueError as error:
            raise ValueError(f"data {name!r}: {error}") from error
        # Rows are at least as long as the longest text, so that no text is cut again.
        longest = int(np.diff(table.starts).max())
        if mined:  # a teacher has scored the negatives of the data
            unknown = np.full_like(table.text_scores, np.nan)
            table = table._replace(text_scores=unknown)
        state = PairSourceState(
            name=name,
            table=table,
            weight=source.weight * len(source.examples) ** data_exponent,
            docs_per_query=1 + negatives,
            length=bucket_length(max(row_length, longest)),
            rows=0,
            row_increment=0,
            loss=source.loss,
            clusters=clusters,
            refreshed=mined,
            has_walk=bool(source.walk),
        )
        state = set_rows(state, batch_size, devices, min_chunks)
        if teacher is not None:
            try:
                state = add_teacher(state, source, teacher, cache, row_length)
            except ValueError as error:
                raise ValueError(f"data {name!r}: teacher: {error}") from error
        if state.teacher is not None:
            # Its rows are divided into chunks like the model's
            rows = set_rows(state.teacher, batch_size, devices, min_chunks)
            state = state._replace(teacher=rows)
        states.append(state)
    return PairBatches(
        sources=tuple(states),
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        batch_size=batch_size,
        bins=bins,
        orders=tuple(orders),
        adapters=tuple(adapters),
        steps=steps,
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


def _make_order(
    source: Source,
    table: PairTable,
    negatives: int,
    batch_size: int,
    clusters: np.ndarray | None,
    mined: RefreshedNegatives | None,
) -> Callable[[sampling.Seed, int], np.ndarray]:
    """The function of a source's orders, of which it keeps two.

    Raises:
        ValueError: The source has a walk, and something else that decides its batches.
    """
    if source.walk:
        if mined or clusters is not None:
            other = "clusters" if mined is None else "negatives that the run mines"
            raise ValueError(f"walk {source.walk} does not go with {other}")
        return cache_walks(table, negatives, source.walk, 2)
    if clusters is not None:
        return sampling.cache_cluster_orders(clusters, batch_size, 2)
    return sampling.cache_permutations(2)


def _check_size(source: Source, batch_size: int) -> None:
    if len(source.examples) < batch_size:
        raise ValueError(
            f"{len(source.examples)} rows are fewer than one batch of {batch_size}"
        )
