"""Losses of the sources of a run, and checks of its data before the first step."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import parse_section
from research.data.pair_batches import PairBatches
from research.data.pair_rows import PairSourceState
from research.data.sources import Source
from research.losses.registry import LOSSES, Loss, build_loss
from research.types import Labels

# Labels of natural language inference, whose 0 is entailment in the usual files.
CLASSES = [0.0, 1.0, 2.0]

# {call text: (name, loss)} of the losses of all sources; "" is that of the config
NamedLosses = Mapping[str, tuple[str, Loss]]


def build_losses(config, sources: Mapping[str, Source]) -> NamedLosses:
    """The loss of a config and those of its sources; {} for pre-training.

    Raises:
        ValueError: A source names a loss that there is not, or any in pre-training.
    """
    own = {name: source.loss for name, source in sources.items() if source.loss}
    if "loss" not in config:
        if own:
            name, text = next(iter(own.items()))
            raise ValueError(
                f"data {name!r} has the loss {text}, but {config.objective.name} "
                "trains on rows of text, without pairs"
            )
        return {}
    losses = {"": (config.loss.name, build_loss(config.loss, config.similarity))}
    for name, text in own.items():
        try:
            section = parse_section(LOSSES, text)
            losses[text] = section.name, build_loss(section, config.similarity)
        except ValueError as error:
            raise ValueError(f"data {name!r}: loss: {error}") from None
    return losses


def check_sources(
    batches: PairBatches, sources: Mapping[str, Source], losses: NamedLosses
) -> tuple[str, ...]:
    """Checks that every source has what its loss needs; nothing is computed.

    Args:
        batches: Batches of the run.
        sources: Their sources by name.
        losses: Losses of the sources.

    Returns:
        Sentences about data that are not used, or used in a way that may surprise.

    Raises:
        ValueError: The loss needs scores or hard negatives that a source lacks, or
            scores of another range.
    """
    notes = describe_sources(sources)
    for state in batches.sources:
        name, loss = losses[state.loss]
        scores = state.table.scores  # [n]
        has_scores = not np.isnan(scores[0])
        low, high = float(scores.min()), float(scores.max())
        try:
            _trace_loss(loss, batches.batch_size, state, has_scores)
            is_cosine = name == "cosine_mse" and loss.similarity == "cosine"
            if is_cosine and not -1 <= low <= high <= 1:
                raise ValueError(
                    f"the scores are from {low:g} to {high:g}, but cosines are at most "
                    f"1: set score_range={max(-low, high):g}"
                )
        except ValueError as error:
            raise ValueError(f"data {state.name!r}: loss {name}: {error}") from None
        if not has_scores:
            continue
        # Some losses ignore scores, even those of pairs that are not alike.
        use = f"{name} learns from its scores, from {low:g} to {high:g}"
        if not _needs_scores(loss, batches.batch_size, state):
            use = f"{name} does not use its scores: every pair is a positive one"
        elif np.unique(scores).tolist() == CLASSES:
            use += ", not as classes: pairs of score 2 should be the most similar"
        notes += (f"data {state.name!r}: {use}",)
    return notes


def describe_sources(sources: Mapping[str, Source]) -> tuple[str, ...]:
    """What the sources say of their data, and whether their prompts differ."""
    notes = [f"data {name!r}: {s.note}" for name, s in sources.items() if s.note]
    if len({tuple(sorted(source.prompts.items())) for source in sources.values()}) > 1:
        notes.append(
            "the sources have different prompts: the model learns with them, and is "
            "evaluated and embeds without"
        )
    return tuple(notes)


def _needs_scores(loss: Loss, batch_size: int, state: PairSourceState) -> bool:
    """Whether a loss that takes this source fails without its scores."""
    try:
        _trace_loss(loss, batch_size, state, has_scores=False)
    except ValueError:
        return True
    return False


def _trace_loss(
    loss: Loss, batch_size: int, state: PairSourceState, has_scores: bool
) -> None:
    """Calls a loss with the shapes of a source's batches."""
    docs = batch_size * state.docs_per_query

    shape = jax.ShapeDtypeStruct
    q, d = (shape((count, 2), jnp.float32) for count in (batch_size, docs))
    ids = (shape((count, 2), jnp.uint32) for count in (batch_size, docs))
    score = shape((batch_size,), jnp.float32) if has_scores else None
    jax.eval_shape(loss, q, d, Labels(score, *ids))
