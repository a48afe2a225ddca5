"""Checks of the data of a run before its first step, and notes on what is left out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from research.data.pair_batches import PairBatches
from research.data.pair_rows import PairSourceState
from research.data.sources import Source
from research.losses.registry import Loss
from research.losses.similarity import TOKEN_SIMILARITIES
from research.types import Labels

# Labels of natural language inference, whose 0 is entailment in the usual files.
CLASSES = [0.0, 1.0, 2.0]


def check_sources(
    batches: PairBatches, sources: Mapping[str, Source], name: str, loss: Loss
) -> tuple[str, ...]:
    """Checks that a loss can learn from every source; nothing is computed.

    Args:
        batches: Batches of the run.
        sources: Their sources by name.
        name: Name of the loss.
        loss: The loss.

    Returns:
        Sentences about data that are not used, or used in a way that may surprise.

    Raises:
        ValueError: The loss needs scores or hard negatives that a source lacks, or
            scores of another range.
    """
    notes = describe_sources(sources)
    for state in batches.sources:
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
    # Of several vectors per text, one
    width = (1, 2) if loss.similarity in TOKEN_SIMILARITIES else (2,)
    q, d = (shape((count, *width), jnp.float32) for count in (batch_size, docs))
    ids = (shape((count, 2), jnp.uint32) for count in (batch_size, docs))
    score = shape((batch_size,), jnp.float32) if has_scores else None
    jax.eval_shape(loss, q, d, Labels(score, *ids))
