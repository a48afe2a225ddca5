"""The share of negatives that a guide or a margin leaves out, for the metrics of a run.

A loss without negatives is low, too: a guide that takes all texts for positives looks
like a model that is trained well.
"""

import jax.numpy as jnp

from research.losses.similarity import PairScores
from research.losses.teacher import teacher_pairs
from research.types import Array, Labels


def measure_guide(
    scores: PairScores,
    labels: Labels,
    *,
    margin: float = 0.0,
    margin_kind: str = "absolute",
    **options,
) -> Array:
    """[b] share of documents that `contrastive.gist` leaves out by its guide.

    Args:
        scores: Similarities of b rows of the batch.
        labels: The guide's vectors of all texts.
        margin, margin_kind: As in `gist`.
        **options: Ignored: the other options of the loss.
    """
    del options
    guide = PairScores(teacher_pairs(labels, scores.vectors), "cosine")
    limit = guide.own_documents[:, :1]  # [b, 1]
    limit -= margin * (jnp.abs(limit) if margin_kind == "relative" else 1.0)
    return _measure_share(guide, limit)


def measure_margin(
    scores: PairScores, labels: Labels, *, margin: float, **options
) -> Array:
    """[b] share of documents that `margin` leaves out of `infonce` or `gte`.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Ignored.
        margin: As in `infonce`.
        **options: Ignored: the other options of the loss.
    """
    del labels, options
    return _measure_share(scores, scores.own_documents[:, :1] + margin)


def _measure_share(scores: PairScores, limit: Array) -> Array:
    """[b] share of the documents, but for the positive, that score above [b, 1]."""
    rows, num_docs = scores.vectors.rows, scores.vectors.docs_per_query
    count = len(scores.vectors.all_documents)
    is_other = (rows * num_docs)[:, None] != jnp.arange(count)[None]  # [b, B*K]
    above = (scores.query_document > limit) & is_other
    return jnp.sum(above, axis=1, dtype=jnp.float32) / max(1, count - 1)


# Of losses with a mask, by their names.
MEASURES = {"gist": measure_guide, "infonce": measure_margin, "gte": measure_margin}
