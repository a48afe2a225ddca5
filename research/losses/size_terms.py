"""Terms of losses over the sizes of an elastic model: task losses and divergences.

A size (l, k) is the first k dimensions of the pooled output of block l, cut before the
similarity (and so before it is normalized). Index 0 of the depth axis is the embedding
layer. A term is the base loss at a size (`task/{l}x{k}`), or the divergence of a size
from its teacher, the last layer (`kl/{l}x{k}`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.losses.registry import Loss
from research.losses.similarity import SIMILARITIES
from research.transforms.normalize import to_float32
from research.types import Array, Key, Labels, SizeLoss

# ((depth, dim), ...)
Pairs = tuple[tuple[int, int], ...]


class SampledWidth(NamedTuple):
    """One of several widths, chosen on the device by a sampled index."""

    index: Array
    widths: tuple[int, ...]


class Term(NamedTuple):
    """A size, fixed or sampled, and the weight of its term in the sum."""

    name: str
    layer: int | Array
    width: int | SampledWidth
    weight: float | Array


# choose_terms(key, L, D) -> (terms with a task loss, terms with a divergence)
ChooseTerms = Callable[[Key, int, int], tuple[Sequence[Term], Sequence[Term]]]
# divergence(q [B, L+1, D], d [B*K, L+1, D], term) -> [B]
Divergence = Callable[[Array, Array, Term], Array]


def sum_terms(
    loss: Loss, choose_terms: ChooseTerms, divergence: Divergence | None = None
) -> SizeLoss:
    """The weighted sum of task losses and divergences at some sizes.

    Args:
        loss: The base loss.
        choose_terms: (key, L, D) -> (terms with a task loss, terms with a divergence).
        divergence: Divergence of a size from its teacher; None where no size has one.

    Returns:
        A SizeLoss that needs all layers; its metrics are the unweighted means of the
        terms.
    """

    def sum_of_terms(q: Array, d: Array, labels: Labels, key: Key):
        chex.assert_rank([q, d], 3)
        # Sizes, fixed or sampled for this step (layers are then [] int32)
        tasks, students = choose_terms(key, q.shape[1] - 1, q.shape[2])
        total, metrics = jnp.zeros(q.shape[0]), {}
        for term in tasks:
            values = _task_loss(loss, q, d, labels, term)  # [B]
            total += term.weight * values
            metrics[f"task/{term.name}"] = jnp.mean(values)
        for term in students:
            values = divergence(q, d, term)  # [B]
            total += term.weight * values
            metrics[f"kl/{term.name}"] = jnp.mean(values)
        return total, metrics

    return SizeLoss(sum_of_terms, needs_all_layers=True)


def feature_kl(
    q: Array, d: Array, term: Term, *, temperature: float, detach_teacher: bool
) -> Array:
    """KL(last layer || size) over the dimensions of each unnormalized embedding.

    Returns:
        [B], the mean over a query and its documents, so that the mean over the batch is
        the mean over all B + B*K texts.
    """

    def text_kl(x):
        teacher = x[:, -1, : term.width]  # [N, k]
        teacher = jax.lax.stop_gradient(teacher) if detach_teacher else teacher
        return _softmax_kl(teacher, x[:, term.layer, : term.width], temperature)

    # [B, 1 + K] divergences of each query and of its documents
    grouped = [text_kl(x).reshape(q.shape[0], -1) for x in (q, d)]
    return jnp.mean(jnp.concatenate(grouped, axis=1), axis=1)


def score_kl(
    q: Array,
    d: Array,
    term: Term,
    *,
    temperature: float,
    detach_teacher: bool,
    similarity: str,
    full_width_teacher: bool,
) -> Array:
    """[B] KL(last layer || size) over each query's similarities to all documents."""
    score = SIMILARITIES[similarity]
    width = q.shape[-1] if full_width_teacher else term.width
    teacher = score(q[:, -1, :width], d[:, -1, :width])  # [B, B*K]
    teacher = jax.lax.stop_gradient(teacher) if detach_teacher else teacher
    q, d = q[:, term.layer, : term.width], d[:, term.layer, : term.width]
    return _softmax_kl(teacher, score(q, d), temperature)


def sample_layers(key: Key, blocks: int, count: int) -> list[Array]:
    """Samples `count` distinct layers of 1..L-1 in random order; all of them for -1."""
    check_depth(blocks)
    layers = jax.random.permutation(key, jnp.arange(1, blocks))
    return list(layers[: blocks - 1 if count < 0 else min(count, blocks - 1)])


def sample_width(key: Key, widths: tuple[int, ...]) -> SampledWidth:
    """Samples one of the widths uniformly."""
    return SampledWidth(jax.random.randint(key, (), 0, len(widths)), tuple(widths))


def check_depth(blocks: int) -> None:
    """Raises ValueError for a model with only one layer."""
    if blocks < 2:
        raise ValueError("this loss needs 2 layers or more, but the model has 1")


def check_dims(dims: Sequence[int], width: int) -> None:
    """Raises ValueError for a width that a model of `width` dims does not have."""
    for k in dims:
        if not 1 <= k <= width:
            raise ValueError(f"dim {k} is not in the model, which has {width} dims")


def check_pairs(pairs: Pairs, blocks: int, width: int) -> None:
    """Raises ValueError for a (depth, dim) that the model does not have."""
    for depth, dim in pairs:
        if not (1 <= depth <= blocks and 1 <= dim <= width):
            raise ValueError(
                f"size ({depth}, {dim}) is not in the model, which has {blocks} layers "
                f"and {width} dims"
            )


def _task_loss(loss: Loss, q: Array, d: Array, labels: Labels, term: Term) -> Array:
    """[B] base loss at a size; a sampled width selects a branch of `lax.switch`.

    (Replacing the truncated dimensions by zeros would suffice for cosines, but not for
    `angle`, which splits its input into halves.)
    """

    def loss_at_width(k, q, d, labels):
        return loss(q[:, :k], d[:, :k], labels)

    # [B, D] and [B*K, D] at this layer
    q, d = q[:, term.layer], d[:, term.layer]
    if isinstance(term.width, int):
        return loss_at_width(term.width, q, d, labels)
    branches = [partial(loss_at_width, k) for k in term.width.widths]
    return jax.lax.switch(term.width.index, branches, q, d, labels)


def _softmax_kl(teacher: Array, student: Array, temperature: float) -> Array:
    """[N] KL(softmax(teacher / T) || softmax(student / T)) of logits [N, C]."""
    teacher = jax.nn.log_softmax(to_float32(teacher) / temperature)
    student = jax.nn.log_softmax(to_float32(student) / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


# Weight of the task loss at layer l; l is an int or [] int32.
LAYER_WEIGHTS = {
    "uniform": lambda layer: 1.0,
    "linear": lambda layer: 1 / jnp.float32(layer),
    "log": lambda layer: 1 / (1 + jnp.log1p(jnp.float32(layer))),
}
