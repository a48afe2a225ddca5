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

from research import sharding
from research.losses.registry import Loss
from research.losses.similarity import (
    PairScores,
    PairVectors,
    gather_pairs,
    map_row_blocks,
)
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
# gather_size(layer, width) -> the embeddings of a size, this device's and all devices'
GatherSize = Callable[[int | Array, int], PairVectors]
# divergence(gather_size, D, term) -> [B]
Divergence = Callable[[GatherSize, int, Term], Array]


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
        width = q.shape[2]
        # Sizes, fixed or sampled for this step (layers are then [] int32)
        tasks, students = choose_terms(key, q.shape[1] - 1, width)
        # The embeddings of every size that a term needs are exchanged once
        labels = jax.tree.map(sharding.gather_rows, labels)
        gather_size = _cache_sizes(q, d)
        total, metrics = jnp.zeros(q.shape[0]), {}
        for term in tasks:
            values = _task_loss(loss, gather_size, width, labels, term)  # [B]
            total += term.weight * values
            metrics[f"task/{term.name}"] = jnp.mean(values)
        for term in students:
            values = divergence(gather_size, width, term)  # [B]
            total += term.weight * values
            metrics[f"kl/{term.name}"] = jnp.mean(values)
        return total, metrics

    return SizeLoss(sum_of_terms, needs_all_layers=True)


def feature_kl(
    gather_size: GatherSize,
    full_width: int,
    term: Term,
    *,
    temperature: float,
    detach_teacher: bool,
) -> Array:
    """KL(last layer || size) over the dimensions of each unnormalized embedding.

    Returns:
        [B], the mean over a query and its documents, so that the mean over the batch is
        the mean over all B + B*K texts.
    """
    del full_width
    teachers = gather_size(-1, term.width)
    students = gather_size(term.layer, term.width)

    def text_kl(teacher, student):
        teacher = jax.lax.stop_gradient(teacher) if detach_teacher else teacher
        return _softmax_kl(teacher, student, temperature)

    # [B, 1 + K] divergences of each query and of its documents; no exchange is needed
    of_queries = text_kl(teachers.queries, students.queries)
    of_documents = text_kl(teachers.documents, students.documents)
    grouped = [x.reshape(len(of_queries), -1) for x in (of_queries, of_documents)]
    return jnp.mean(jnp.concatenate(grouped, axis=1), axis=1)


def score_kl(
    gather_size: GatherSize,
    full_width: int,
    term: Term,
    *,
    temperature: float,
    detach_teacher: bool,
    similarity: str,
    full_width_teacher: bool,
) -> Array:
    """[B] KL(last layer || size) over each query's similarities to all documents."""

    def kl_of_rows(teachers: PairVectors, students: PairVectors) -> Array:
        teacher = PairScores(teachers, similarity).query_document  # [b, B*K]
        teacher = jax.lax.stop_gradient(teacher) if detach_teacher else teacher
        student = PairScores(students, similarity).query_document
        return _softmax_kl(teacher, student, temperature)

    teachers = gather_size(-1, full_width if full_width_teacher else term.width)
    students = gather_size(term.layer, term.width)
    return map_row_blocks(kl_of_rows, teachers, students)


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


def _cache_sizes(q: Array, d: Array) -> GatherSize:
    """Gathers the embeddings of a size when it is asked for the first time.

    Args:
        q: [B, L+1, D] queries of this device.
        d: [B*K, L+1, D] their documents.
    """
    cache = {}

    def gather_size(layer, width):
        # The last layer has two numbers, and a sampled one is known by its identity
        fixed = isinstance(layer, int)
        key = (layer % q.shape[1] if fixed else id(layer), width)
        if key not in cache:
            cache[key] = gather_pairs(q[:, layer, :width], d[:, layer, :width])
        return cache[key]

    return gather_size


def _task_loss(
    loss: Loss, gather_size: GatherSize, full_width: int, labels: Labels, term: Term
) -> Array:
    """[B] base loss at a size; a sampled width selects a branch of `lax.switch`.

    (Replacing the truncated dimensions by zeros would suffice for cosines, but not for
    `angle`, which splits its input into halves.)
    """
    if isinstance(term.width, int):
        return loss.fn(gather_size(term.layer, term.width), labels)

    def loss_at_width(k, vectors):
        texts = [x[:, :k] for x in vectors[:-1]]
        return loss.fn(PairVectors(*texts, vectors.rows), labels)

    branches = [partial(loss_at_width, k) for k in term.width.widths]
    vectors = gather_size(term.layer, full_width)
    return jax.lax.switch(term.width.index, branches, vectors)


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
