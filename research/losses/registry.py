"""The table of losses of pairs, sums of them, and their binding to a similarity.

Losses of scores are (PairScores of b rows, Labels, *, options) -> [b]; losses that need
vectors are (q [B, D], d [B*K, D], Labels, *, options) -> [B]. Once bound, both are a
`Loss`, which the losses over sizes (`matryoshka.SIZE_LOSSES`) apply to truncated
vectors. Labels are those of the whole batch.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.config_sections import bind, check_option, parse_section_list
from research.losses.contrastive import gist, gte, infonce
from research.losses.distillation import (
    backward_compatible,
    embedding_cosine,
    embedding_mse,
    margin_mse,
    teacher_kl,
)
from research.losses.masking import MEASURES
from research.losses.pairwise import angle, angle_triplets, cosent, cosine_mse, triplet
from research.losses.regularizers import flops, l1, spread_out
from research.losses.relations import relational_kd, stella
from research.losses.similarity import (
    SIMILARITIES,
    TOKEN_SIMILARITIES,
    PairScores,
    PairVectors,
    gather_pairs,
    map_row_blocks,
)
from research.losses.summed_scores import m3, situated
from research.losses.supcon import supcon
from research.sharding import gather_rows
from research.types import Array, Labels, Metrics

ScoreLoss = Callable[[PairScores, Labels], Array]
VectorLoss = Callable[[Array, Array, Labels], Array]


@dataclass(frozen=True)
class Loss:
    """A loss of embeddings: loss(q, d, labels) -> [B] float32.

    The embeddings q [B, D] and d [B*K, D] are not normalized. Row i*K of d is query i's
    positive, the next K-1 rows are its hard negatives. Within `sharding.map_over_data`
    the arguments are those of this device's pairs, and so is the result.

    Attributes:
        fn: The loss function (PairVectors of b rows, labels of the batch) -> [b].
        similarity: Name of the similarity that compares embeddings.
        temperature: Divisor of the similarities in the loss; 1 if it has none.
        matches_teacher: Whether vectors should be those of a teacher, of equal width.
        terms: Name, weight and loss of each term of a sum; () of a single loss.
        measure: The share of negatives that are left out, with the arguments and the
            shape of `fn`; None for a loss that leaves none out.
    """

    fn: Callable[[PairVectors, Labels], Array]
    similarity: str
    temperature: float
    matches_teacher: bool = False
    terms: "tuple[tuple[str, float, Loss], ...]" = ()
    measure: Callable[[PairVectors, Labels], Array] | None = None

    def __call__(self, q: Array, d: Array, labels: Labels) -> Array:
        """The loss of each query, [B] float32."""
        return self.fn(gather_pairs(q, d), jax.tree.map(gather_rows, labels))

    def compute_terms(
        self, q: Array, d: Array, labels: Labels
    ) -> tuple[Array, Metrics]:
        """The loss of each query, [B], and its metrics, as `sum_terms` has them."""
        # The batch's texts are exchanged once
        return self.sum_terms(gather_pairs(q, d), jax.tree.map(gather_rows, labels))

    def sum_terms(self, vectors: PairVectors, labels: Labels) -> tuple[Array, Metrics]:
        """The loss [b] of rows of the batch, and its metrics.

        They are the unweighted mean of each term of a sum, and the share of negatives
        that are left out.
        """
        total, metrics = jnp.zeros(len(vectors.queries)), {}
        for name, weight, loss in self.terms or (("", 1.0, self),):
            values = loss.fn(vectors, labels)  # [B]
            total += weight * values
            if self.terms:
                metrics[f"term/{name}"] = jnp.mean(values)
            if loss.measure is not None:
                metrics["masked_negatives"] = jnp.mean(loss.measure(vectors, labels))
        return total, metrics


def score_loss(loss: ScoreLoss, similarity: str = "cosine") -> Loss:
    """Binds a loss of scores to the similarity that computes them.

    Args:
        loss: One of SCORE_LOSSES, with its options bound by functools.partial.
        similarity: A name in SIMILARITIES.

    Raises:
        ValueError: The similarity is unknown.
    """
    check_option("similarity", similarity, SIMILARITIES)

    return Loss(_map_scores(loss, similarity), similarity, _temperature(loss))


def _map_scores(
    fn: ScoreLoss, similarity: str
) -> Callable[[PairVectors, Labels], Array]:
    """A function of scores as one of vectors, with a block of rows at a time."""

    def run(vectors: PairVectors, labels: Labels) -> Array:
        def compute_rows(rows: PairVectors) -> Array:
            return fn(PairScores(rows, similarity), labels)

        return map_row_blocks(compute_rows, vectors)

    return run


def vector_loss(loss: VectorLoss, similarity: str = "cosine") -> Loss:
    """Wraps a loss of vectors, with the similarity that its embeddings are used with.

    Every device computes the loss of the whole batch, and takes its own rows.

    Args:
        loss: One of VECTOR_LOSSES, with its options bound by functools.partial.
        similarity: A name in SIMILARITIES.

    Raises:
        ValueError: The similarity is unknown.
    """
    check_option("similarity", similarity, SIMILARITIES)

    def run(vectors: PairVectors, labels: Labels) -> Array:
        losses = loss(vectors.all_queries, vectors.all_documents, labels)  # [B]
        return vectors.take_rows(losses)

    return Loss(run, similarity, _temperature(loss))


def build_loss(config: Mapping[str, Any], similarity: str = "cosine") -> Loss:
    """The loss of a config section, bound to a similarity.

    Args:
        config: A config section that names one of LOSSES.
        similarity: A name in SIMILARITIES.

    Raises:
        ValueError: The loss, one of its arguments or the similarity is unknown, or the
            similarity is one of several vectors per text, which the loss does not take.
    """
    loss = bind(LOSSES, config)
    if config["name"] == "weighted_sum":
        return loss(similarity)
    # Losses of scores that also read the vectors
    one_vector = (*MATCHING_LOSSES, "situated")
    takes_tokens = [n for n in SCORE_LOSSES if n not in one_vector]
    if similarity in TOKEN_SIMILARITIES and config["name"] not in takes_tokens:
        raise ValueError(
            f"similarity is {similarity!r}, of several vectors per text, but the loss "
            f"compares one vector per text; allowed: {', '.join(takes_tokens)}"
        )
    make_loss = vector_loss if config["name"] in VECTOR_LOSSES else score_loss
    measure = None
    # Only gist leaves negatives out without a margin
    has_mask = config["name"] == "gist" or config.get("margin") is not None
    if config["name"] in MEASURES and has_mask:
        options = partial(MEASURES[config["name"]], **loss.keywords)
        measure = _map_scores(options, similarity)
    return dataclasses.replace(
        make_loss(loss, similarity),
        matches_teacher=config["name"] in MATCHING_LOSSES,
        measure=measure,
    )


def weighted_sum(
    similarity: str = "cosine",
    *,
    terms: str = "infonce()",
    weights: tuple[float, ...] = (),
) -> Loss:
    """Weighted sum of several losses of the same batch.

    Args:
        similarity: A name in SIMILARITIES, for all losses.
        terms: The losses, as "infonce(temperature=0.02) | spread_out()".
        weights: One weight per loss; all 1 if empty.

    Returns:
        The sum, with the temperature of the first loss.

    Raises:
        ValueError: A loss is unknown, or the weights are not one per loss.
    """
    sections = parse_section_list(LOSSES, terms)
    if weights and len(weights) != len(sections):
        raise ValueError(
            f"{len(weights)} weights are given for {len(sections)} terms: {terms}"
        )
    losses = [build_loss(section, similarity) for section in sections]
    # The second loss of a name has a number
    names = [section.name for section in sections]
    numbers = [names[:i].count(name) + 1 for i, name in enumerate(names)]
    parts = tuple(
        (name if number == 1 else f"{name}{number}", weight, loss)
        for name, number, weight, loss in zip(
            names, numbers, weights or (1.0,) * len(losses), losses, strict=True
        )
    )

    def run(vectors: PairVectors, labels: Labels) -> Array:
        return sum(weight * loss.fn(vectors, labels) for _, weight, loss in parts)

    return dataclasses.replace(
        losses[0],
        fn=run,
        matches_teacher=any(loss.matches_teacher for loss in losses),
        terms=parts,
    )


def _temperature(loss: Callable[..., Array]) -> float:
    """The temperature of a loss: its argument `temperature`, or 1 / `scale`, or 1."""
    # Options bound by functools.partial are defaults of its signature
    parameters = inspect.signature(loss).parameters
    if "temperature" in parameters:
        return parameters["temperature"].default
    if "scale" in parameters:
        return 1 / parameters["scale"].default
    return 1.0


# Losses of scores, for any similarity.
SCORE_LOSSES = {
    "infonce": infonce,
    "gte": gte,
    "supcon": supcon,
    "cosent": cosent,
    "cosine_mse": cosine_mse,
    "gist": gist,
    "situated": situated,
    "m3": m3,
    "spread_out": spread_out,
    "l1": l1,
    "teacher_kl": teacher_kl,
    "margin_mse": margin_mse,
    "backward_compatible": backward_compatible,
    "embedding_mse": embedding_mse,
    "embedding_cosine": embedding_cosine,
}
# Losses of the vectors themselves.
VECTOR_LOSSES = {
    "angle": angle,
    "angle_triplets": angle_triplets,
    "triplet": triplet,
    "flops": flops,
    "relational_kd": relational_kd,
    "stella": stella,
}
# Losses whose vectors should be those of a teacher, dimension by dimension.
MATCHING_LOSSES = (
    *("embedding_mse", "embedding_cosine", "stella"),
    "backward_compatible",
)
# All losses that a config section `loss` can name.
LOSSES = {**SCORE_LOSSES, **VECTOR_LOSSES, "weighted_sum": weighted_sum}
