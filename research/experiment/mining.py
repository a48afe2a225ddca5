"""Hard negatives that a run mines every few steps with its own model.

The candidates are the documents of a source, negatives included, as they are tokenized
for training. Files of the workdir keep what was mined.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from research.config_sections import build_nothing
from research.data.pairs.pair_batches import PairBatches
from research.data.pairs.pair_rows import PairSourceState
from research.data.pairs.refreshed_negatives import RefreshedNegatives
from research.experiment.dynamic_mining import ReplacementRule, update_negatives
from research.experiment.table_mining import draw_documents, mine_source
from research.inference.embedder import Embedder
from research.inference.mining import Negatives
from research.inference.mining_rules import MiningRules
from research.processes import call_on_first
from research.train.experiment import Refresh


@dataclass(frozen=True)
class NegativeMining:
    """How a run mines its hard negatives.

    Attributes:
        every: Interval in steps.
        rules: Which candidates are negatives.
        sources: Names of the sources with mined negatives; () for all.
        replacement: When negatives are replaced by others of a list that is mined once;
            None mines all anew.
        is_random: Whether negatives are random documents, without a search.
    """

    every: int
    rules: MiningRules
    sources: tuple[str, ...]
    replacement: ReplacementRule | None = None
    is_random: bool = False


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

    Xiong et al. 2021 (ANCE). They take the place of the negatives of the data, which
    are among the candidates. A query with too few candidates gets random documents.

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


def dynamic(
    *,
    every: int = 100,
    negatives: int = 1,
    relative_margin: float | None = None,
    ratio: float = 1.15,
    max_score: float = 0.8,
    skip: int = 10,
    replacements: int = 10,
    sources: tuple[str, ...] = (),
) -> NegativeMining:
    """Negatives that have become easy are replaced by the next ones of a list.

    Li et al. 2024 (Conan-embedding). The initial model ranks the documents for each
    query; the best ones are the first negatives.

    Args:
        every: Interval in steps.
        negatives: N, number of negatives per query in every step.
        relative_margin: As in `MiningRules`, for the list.
        ratio: The negatives of an example are replaced if their mean score times this
            is below the mean score that they had when they were taken.
        max_score: Mean scores of at least this magnitude are not replaced.
        skip: The i-th replacement has N documents from rank skip + (i - 1) * N on.
        replacements: Most replacements of an example.
        sources: Names of the sources that this holds for; () for all.
    """
    rules = MiningRules(negatives, relative_margin=relative_margin, fill=True)
    rule = ReplacementRule(ratio, max_score, skip, replacements)
    return NegativeMining(every, rules, sources, rule)


def draw_random(
    *, every: int = 1_000, negatives: int = 1, sources: tuple[str, ...] = ()
) -> NegativeMining:
    """Every query gets random documents of its source, to compare mined ones with.

    Args:
        every: Interval in steps, after which others are drawn.
        negatives: Number of negatives per query in every step.
        sources: Names of the sources that this holds for; () for all.
    """
    return NegativeMining(every, MiningRules(negatives), sources, is_random=True)


# {name in a config: function that says how negatives are mined}
MINING = {
    "none": build_nothing,
    "refresh": refresh,
    "dynamic": dynamic,
    "random": draw_random,
}


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
        similarity: As in `mine_negatives`.
    """
    mined = [source for source in batches.sources if source.refreshed is not None]

    def run(params, frozen, step: int) -> Iterator[str]:
        # A killed run may have mined them
        missing = [source for source in mined if not _is_complete(source, step)]
        embedder = make_run_embedder(params, frozen) if missing else None
        for source in missing:
            start = time.perf_counter()
            seed = f"{batches.seed} {source.name} {step}"
            try:
                texts, note = _mine(mining, source, embedder, step, similarity, seed)
            except ValueError as error:
                raise ValueError(f"data {source.name!r}: {error}") from error
            write = partial(source.refreshed.write, step, texts)
            call_on_first(write, "writing mined negatives")
            seconds = time.perf_counter() - start
            yield f"data {source.name!r}: {note} ({seconds:.1f} s)"

    def clear() -> None:
        for source in mined:
            source.refreshed.clear()

    def drop(step: int) -> None:
        for source in mined:
            source.refreshed.drop(step)

    return Refresh(mining.every, run, clear, drop)


def _mine(
    mining: NegativeMining,
    source: PairSourceState,
    embedder: Embedder,
    step: int,
    similarity: str,
    seed: str,
) -> tuple[np.ndarray, str]:
    """The negatives of a source from a step on, [n, N], and a sentence about them."""
    rules = mining.rules
    if mining.replacement is not None:
        return update_negatives(
            source, embedder, rules, mining.replacement, step, similarity, seed
        )
    if mining.is_random:
        texts = draw_documents(source, rules.negatives, seed)
        return texts, f"{rules.negatives} random negatives for each query"
    texts, negatives = mine_source(source, embedder, rules, similarity, seed)
    notes = [f"{rules.negatives} negatives mined for each query"]
    notes += _describe_changes(source, step, texts, negatives)
    return texts, ", ".join(notes)


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
