"""Hard negatives that a run mines every few steps with its own model (ANCE).

Xiong et al. 2021. The candidates are the documents of a source, negatives included, as
they are tokenized for training. Files of the workdir keep what was mined.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from research.data.pairs.pair_batches import PairBatches
from research.data.pairs.pair_cache import PairTable
from research.data.pairs.pair_rows import PairSourceState
from research.data.pairs.refreshed_negatives import RefreshedNegatives
from research.experiment.table_pairs import number_table
from research.inference.batching import TokenRows
from research.inference.embedder import Embedder
from research.inference.mining import Negatives, mine_negatives
from research.inference.mining_rules import MiningRules
from research.inference.shares import split_over_processes
from research.inference.tokenize import TokenizedTexts
from research.processes import call_on_first
from research.train.experiment import Refresh


@dataclass(frozen=True)
class NegativeMining:
    """How a run mines its hard negatives.

    Attributes:
        every: Interval in steps.
        rules: Which candidates are negatives.
        sources: Names of the sources with mined negatives; () for all.
    """

    every: int
    rules: MiningRules
    sources: tuple[str, ...]


def keep_negatives() -> None:
    """The hard negatives are those of the data, if it has any."""


def refresh(
    *,
    every: int = 1_000,
    negatives: int = 1,
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    sampling: str = "top",
    sources: tuple[str, ...] = (),
) -> NegativeMining:
    """Every query gets new negatives every few steps, mined by the model of that step.

    They take the place of the negatives of the data, which are among the candidates. A
    query with too few candidates gets random documents, too.

    Args:
        every: Interval in steps; the first negatives are those of the initial model.
        negatives: Number of negatives per query in every step.
        range_min, range_max, absolute_margin, relative_margin: As in `MiningRules`.
        max_score, min_score, sampling: As in `MiningRules`.
        sources: Names of the sources that this holds for; () for all.
    """
    rules = MiningRules(
        negatives=negatives,
        range_min=range_min,
        range_max=range_max,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        max_score=max_score,
        min_score=min_score,
        sampling=sampling,
        fill=True,
    )
    return NegativeMining(every, rules, sources)


# {name in a config: function that says how negatives are mined}
MINING = {"none": keep_negatives, "refresh": refresh}


def list_negative_files(
    mining: NegativeMining | None, sources: Sequence[str], folder: Path | None
) -> dict[str, RefreshedNegatives]:
    """{source: files of its mined negatives} of the sources that have such.

    Args:
        mining: How the run mines; None if it does not.
        sources: Names of all sources.
        folder: Folder of the files; None for a run without a workdir.

    Raises:
        ValueError: There is no such source.
    """
    if mining is None:
        return {}
    for name in mining.sources:
        if name not in sources:
            raise ValueError(
                f"mining.sources names {name!r}; the data are {', '.join(sources)}"
            )
    count = mining.rules.negatives
    return {
        name: RefreshedNegatives(folder, name, mining.every, count)
        for name in mining.sources or sources
    }


def make_refresh(
    mining: NegativeMining,
    batches: PairBatches,
    make_run_embedder: Callable[..., Embedder],
    similarity: str,
) -> Refresh:
    """What the training loop calls every few steps to mine negatives.

    Args:
        mining: How the run mines.
        batches: Batches of the run.
        make_run_embedder: (trained, frozen parameters) -> embedder of this process.
        similarity: 'cosine' or 'dot'.
    """
    mined = [source for source in batches.sources if source.refreshed is not None]

    def run(params, frozen, step: int) -> Iterator[str]:
        # A killed run may have mined them
        missing = [source for source in mined if not _is_complete(source, step)]
        embedder = make_run_embedder(params, frozen) if missing else None
        for source in missing:
            start, files = time.perf_counter(), source.refreshed
            seed = f"{batches.seed} {source.name} {step}"
            try:
                texts, negatives = mine_source(
                    source, embedder, mining.rules, similarity, seed
                )
            except ValueError as error:
                raise ValueError(f"data {source.name!r}: {error}") from error
            write = partial(files.write, step, texts)
            call_on_first(write, "writing mined negatives")
            notes = [f"{mining.rules.negatives} negatives mined for each query"]
            notes += _describe_changes(source, step, texts, negatives)
            seconds = time.perf_counter() - start
            yield f"data {source.name!r}: {', '.join(notes)} ({seconds:.1f} s)"

    def clear() -> None:
        for source in mined:
            source.refreshed.clear()

    return Refresh(mining.every, run, clear)


def mine_source(
    source: PairSourceState,
    embedder: Embedder,
    rules: MiningRules,
    similarity: str = "cosine",
    seed: int | str = 0,
) -> tuple[np.ndarray, Negatives]:
    """Mines the negatives of all examples of a source among its documents.

    Args:
        source: The source, with the tokens of its texts.
        embedder: Embedder of this process.
        rules: Which documents are negatives.
        similarity: 'cosine' or 'dot'.
        seed: Seed of random negatives.

    Returns:
        [n, N] int64 indices of texts of the source's table, and the negatives of its
        different queries.

    Raises:
        ValueError: There are too few documents.
    """
    table = source.table
    pairs = number_table(table)
    embed = partial(embed_table, embedder, table, name=source.name)
    negatives = mine_negatives(
        embed(pairs.query_texts, "query"),
        embed(pairs.passage_texts, "document"),
        pairs.positives,
        rules,
        excluded=pairs.excluded,
        similarity=similarity,
        seed=seed,
    )
    texts = pairs.passage_texts[negatives.passages]  # [Q, N]
    return texts[pairs.example_queries], negatives


def embed_table(
    embedder: Embedder, table: PairTable, texts: np.ndarray, role: str, *, name: str
) -> np.ndarray:
    """The vectors of texts of a table, from the tokens that the run trains on.

    In a run of several processes, all call this, and all get all vectors.

    Args:
        embedder: Embedder of this process.
        table: The texts.
        texts: [N] indices of texts.
        role: "query" or "document".
        name: Name of the source, whose adapter is used if it has one.

    Returns:
        [N, D] float32.
    """
    # An adapter of the source serves both roles
    role = name if name in embedder.model.adapters else role

    def encode(ranges, role, *, label):
        token_ids = [table.token_ids[r.start : r.stop].astype(np.int32) for r in ranges]
        spans = None
        if (mask := table.pooling_mask) is not None:
            spans = [mask[r.start : r.stop].astype(np.int32) for r in ranges]
        rows = TokenRows(token_ids, spans)
        return embedder.encode(TokenizedTexts(role, [rows], label))

    starts, stops = table.starts[texts].tolist(), table.starts[texts + 1].tolist()
    return split_over_processes(encode)(list(map(range, starts, stops)), role)


def _is_complete(source: PairSourceState, step: int) -> bool:
    """Whether the negatives of a step are there; all processes say the same."""
    is_there = _read(source, step) is not None
    if jax.process_count() > 1:
        is_there = bool(broadcast_one_to_all(np.int32(is_there)))
    return is_there


def _read(source: PairSourceState, step: int) -> np.ndarray | None:
    """The negatives that a step mined, [n, N]; None if they are not there."""
    try:
        return source.refreshed.read(step, len(source.table.query_text))
    except ValueError:
        return None


def _describe_changes(
    source: PairSourceState, step: int, texts: np.ndarray, negatives: Negatives
) -> Iterator[str]:
    """Says how many negatives are new, and how many are random."""
    before = _read(source, step - source.refreshed.every) if step else None
    if before is not None:
        is_new = ~(texts[:, :, None] == before[:, None, :]).any(axis=-1)  # [n, N]
        yield f"{is_new.mean():.0%} of them new"
    if count := int((negatives.missing > 0).sum()):
        yield (
            f"{count:,} of {len(negatives.missing):,} queries with random ones, since "
            "too few candidates pass the rules"
        )
