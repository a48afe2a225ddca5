"""The terms that a loss over an elastic model's sizes is the sum of.

A size (l, k) is the first k dimensions of the pooled output of block l, normalised (by
the loss, if at all) after the cut. Index 0 of the depth axis is the embedding layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses.similarity import similarities
from research.types import Array, Key, Labels, Loss, SizeLoss

# ((depth, dim), ...)
Pairs = tuple[tuple[int, int], ...]


class Drawn(NamedTuple):
    """One of several widths, known only when the step runs."""

    index: Array
    widths: tuple[int, ...]


class Term(NamedTuple):
    """A size, drawn or fixed, with the weight that one of its terms has in the sum."""

    name: str
    layer: int | Array
    width: int | Drawn
    weight: float | Array


# terms(key, L, D) -> the sizes with a task loss, and the sizes with a divergence.
Choose = Callable[[Key, int, int], tuple[Sequence[Term], Sequence[Term]]]
# divergence(q [B, L+1, D], d [B*K, L+1, D], term) -> [B]
Divergence = Callable[[Array, Array, Term], Array]


def elastic(loss: Loss, choose: Choose, divergence: Divergence | None) -> SizeLoss:
    """The loss that is the sum of the chosen terms, with each one's mean as a metric.

    `task/{l}x{k}` is the base loss at a size and `kl/{l}x{k}` the divergence of a size
    from its teacher, both before their weight.
    """
    return SizeLoss(partial(_total, loss, choose, divergence), needs_all_layers=True)


def feature_kl(q, d, term, *, temperature: float, detach: bool) -> Array:
    """[B] KL(last layer || size) over features, mean over a query and its documents.

    All rows count the same in its mean: 1/(B + B*K) of the sum over all texts.
    """
    rows = [_kl(*_two(x, term, detach), temperature) for x in (q, d)]
    grouped = jnp.concatenate([r.reshape(q.shape[0], -1) for r in rows], axis=1)
    return jnp.mean(grouped, axis=1)


def score_kl(
    q, d, term, *, temperature: float, detach: bool, similarity: str, full: bool
) -> Array:
    """[B] KL(last layer || size) over each query's similarities to all documents."""
    width = q.shape[-1] if full else term.width
    teacher = similarities(q[:, -1, :width], d[:, -1, :width], similarity)
    teacher = jax.lax.stop_gradient(teacher) if detach else teacher
    q, d = q[:, term.layer, : term.width], d[:, term.layer, : term.width]
    return _kl(teacher, similarities(q, d, similarity), temperature)


def drawn_layers(key: Key, blocks: int, count: int) -> list[Array]:
    """Different layers of 1..L-1 in a random order, or all of them for -1."""
    check_depth(blocks)
    layers = jax.random.permutation(key, jnp.arange(1, blocks))
    return list(layers[: blocks - 1 if count < 0 else min(count, blocks - 1)])


def drawn_width(key: Key, widths: tuple[int, ...]) -> Drawn:
    """One of the widths, all equally likely."""
    return Drawn(jax.random.randint(key, (), 0, len(widths)), tuple(widths))


def check_depth(blocks: int) -> None:
    """Raises ValueError for a model with no layer below the last."""
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


def _total(loss: Loss, choose: Choose, divergence, q, d, labels: Labels, key: Key):
    """[B] weighted sum of the chosen terms, and each term's mean without its weight."""
    tasks, students = choose(key, q.shape[1] - 1, q.shape[2])
    total, metrics = jnp.zeros(q.shape[0]), {}
    for term in tasks:
        x = _task(loss, q, d, labels, term)
        total += term.weight * x
        metrics[f"task/{term.name}"] = jnp.mean(x)
    for term in students:
        x = divergence(q, d, term)
        total += term.weight * x
        metrics[f"kl/{term.name}"] = jnp.mean(x)
    return total, metrics


def _task(loss: Loss, q: Array, d: Array, labels: Labels, term: Term) -> Array:
    """[B] loss at a size; a drawn width is a branch, since a loss may depend on it.

    (Zeros in place of the dimensions that are cut would do for cosines, but not for
    `angle`, which splits what it gets into halves.)
    """

    def cut(k, q, d, labels):
        return loss(q[:, :k], d[:, :k], labels)

    q, d = q[:, term.layer], d[:, term.layer]
    if isinstance(term.width, int):
        return cut(term.width, q, d, labels)
    branches = [partial(cut, k) for k in term.width.widths]
    return jax.lax.switch(term.width.index, branches, q, d, labels)


def _two(x: Array, term: Term, detach: bool) -> tuple[Array, Array]:
    """The last layer's prefix [N, k] and the size's [N, k]."""
    teacher = x[:, -1, : term.width]
    teacher = jax.lax.stop_gradient(teacher) if detach else teacher
    return teacher, x[:, term.layer, : term.width]


def _kl(teacher: Array, student: Array, temperature: float) -> Array:
    """[N] KL(softmax(teacher / T) || softmax(student / T)) of logits [N, C]."""
    teacher = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    student = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


# The weight of layer l's task loss, an int or [] int32.
LAYER_WEIGHTS = {
    "uniform": lambda layer: 1.0,
    "linear": lambda layer: 1 / jnp.float32(layer),
    "log": lambda layer: 1 / (1 + jnp.log1p(jnp.float32(layer))),
}
