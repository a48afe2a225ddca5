"""InfoNCE of sums of similarities: SitEmb's two models, BGE-M3's three embeddings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses.contrastive import infonce
from research.losses.late_interaction import score_parts, sum_parts
from research.losses.similarity import PairScores, PairVectors, cosine
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


class GivenScores(NamedTuple):
    """Scores that `infonce` reads in the place of PairScores.

    Attributes:
        vectors: The embeddings of b rows and of the batch.
        query_document: [b, B*K] scores of queries and all documents.
    """

    vectors: PairVectors
    query_document: Array


def m3(
    scores: PairScores,
    labels: Labels,
    *,
    temperature: float = 0.02,
    sparse_weight: float = 0.1,
    distill: bool = True,
) -> Array:
    """InfoNCE of dense, sparse and multi-vector scores, and of their sum (BGE-M3).

    Chen et al. 2024, as their code has it: the mean of the four losses, that of sparse
    scores with a weight; and the cross-entropy of each score with the softmax of the
    sum, which gets no gradient from it (self-distillation).

    Args:
        scores: Similarities of b rows of the batch, by "m3"; their vectors are rows as
            in `transforms.token_rows`.
        labels: As in `infonce`.
        temperature: Divisor of all scores.
        sparse_weight: Weight of the losses of sparse scores.
        distill: Whether the sum teaches the three scores.

    Returns:
        [b] float32 loss per query.

    Raises:
        ValueError: The similarity is another one.
    """
    if scores.similarity != "m3":
        raise ValueError(
            f"the loss m3 needs similarity 'm3' and pool m3, not {scores.similarity!r}"
        )
    # [b, B*K] each: the three scores, and their sum
    vectors = scores.vectors
    parts = score_parts(vectors.queries, vectors.all_documents, score=cosine)
    parts.append(sum_parts(parts))
    losses = [
        infonce(GivenScores(vectors, part), labels, temperature=temperature)
        for part in parts
    ]
    logits = [part / temperature for part in parts]
    return combine_losses(losses, logits, sparse_weight, distill=distill)


def combine_losses(
    losses: list[Array], logits: list[Array], sparse_weight: float, *, distill: bool
) -> Array:
    """The loss of BGE-M3 from its terms.

    Args:
        losses: [b] losses of the dense, sparse and multi-vector scores and their sum.
        logits: [b, C] the same scores, divided by the temperature.
        sparse_weight: Weight of the sparse terms.
        distill: Whether the sum teaches the others.

    Returns:
        [b] float32.
    """
    # [b] InfoNCE of the three scores and of their sum
    weights = (1.0, sparse_weight, 1.0)
    weighted = sum(c * x for c, x in zip(weights, losses[:3], strict=True))
    loss = (weighted + losses[3]) / 4
    if not distill:
        return loss
    # [b] cross-entropies with the softmax of the sum
    teacher = jax.nn.softmax(jax.lax.stop_gradient(logits[3]), axis=1)
    entropies = [
        -jnp.sum(teacher * jax.nn.log_softmax(part, axis=1), axis=1)
        for part in logits[:3]
    ]
    taught = sum(c * x for c, x in zip(weights, entropies, strict=True)) / 3
    return (loss + taught) / 2
