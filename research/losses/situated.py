"""InfoNCE of a model that adds to a frozen baseline: chunks in context (SitEmb)."""

import jax.numpy as jnp

from research.losses.contrastive import infonce
from research.losses.similarity import PairScores, PairVectors
from research.losses.teacher import teacher_pairs
from research.transforms.normalize import l2_normalize, to_float32
from research.types import Array, Labels


def situated(
    scores: PairScores,
    labels: Labels,
    *,
    temperature: float = 0.02,
    negatives: str = "shared",
) -> Array:
    """InfoNCE of the sum of the model's similarity and a frozen baseline's.

    SitEmb (arXiv:2508.01959): the baseline reads a chunk alone, the model reads it
    within its context and learns what the baseline does not know. The sum is a dot
    product of concatenated vectors, which a search would use. The paper's temperature
    and normalization were not at hand.

    Args:
        scores: Similarities of b rows of the batch.
        labels: The baseline's vectors of all texts, and ids of equal texts.
        temperature: Divisor of the sum.
        negatives: As in `infonce`.

    Returns:
        [b] float32 loss per query.

    Raises:
        ValueError: The labels have no vectors, or `negatives` is unknown.
    """
    baseline = teacher_pairs(labels, scores.vectors)
    is_cosine = scores.similarity == "cosine"
    # [N, D + E], with halves of length 1 if the model is compared by cosines
    joined = [
        jnp.concatenate(
            [l2_normalize(part) if is_cosine else to_float32(part) for part in parts],
            axis=1,
        )
        for parts in zip(scores.vectors[:4], baseline[:4], strict=True)
    ]
    total = PairScores(PairVectors(*joined, scores.vectors.rows), "dot")
    return infonce(total, labels, temperature=temperature, negatives=negatives)
