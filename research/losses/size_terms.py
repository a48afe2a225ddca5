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
    dot,
    gather_pairs,
    map_row_blocks,
)
from research.transforms.normalize import to_float32
from research.types import Array, Key, Labels, Metrics, SizeLoss

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
    loss: Loss,
    choose_terms: ChooseTerms,
    divergence: Divergence | None = None,
    *,
    name: str = "kl",
) -> SizeLoss:
    """The weighted sum of task losses and divergences at some sizes.

    Args:
        loss: The base loss.
        choose_terms: (key, L, D) -> (terms with a task loss, terms with a divergence).
        divergence: Divergence of a size from its teacher; None where no size has one.
        name: Name of the divergence in the metrics.

    Returns:
        A SizeLoss that needs all layers; its metrics are the unweighted means of the
        terms and, of a base loss that is a sum, its parts at the largest fixed size.
    """

    def sum_of_terms(q: Array, d: Array, labels: Labels, key: Key):
        chex.assert_rank([q, d], {3, 4})
        width = q.shape[-1]
        # Sizes, fixed or sampled for this step (layers are then [] int32)
        tasks, students = choose_terms(key, q.shape[1] - 1, width)
        # The embeddings of every size that a term needs are exchanged once
        labels = jax.tree.map(sharding.gather_rows, labels)
        gather_size = _cache_sizes(q, d)
        total, metrics = jnp.zeros(q.shape[0]), {}
        # The parts of a sum are those at one size
        largest = _find_largest(tasks, q.shape[1])
        for term in tasks:
            values, parts = _task_loss(loss, gather_size, width, labels, term)  # [B]
            metrics |= parts if term is largest else {}
            total += term.weight * values
            metrics[f"task/{term.name}"] = jnp.mean(values)
        for term in students:
            values = divergence(gather_size, width, term)  # [B]
            total += term.weight * values
            metrics[f"{name}/{term.name}"] = jnp.mean(values)
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

    # No exchange is needed
    of_queries = text_kl(teachers.queries, students.queries)
    of_documents = text_kl(teachers.documents, students.documents)
    return _average_texts(of_queries, of_documents)


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


def component_alignment(
    gather_size: GatherSize, full_width: int, term: Term, *, temperature: float
) -> Array:
    """Distance of k dimensions from k principal components of the layer (ESE).

    For the full vectors M of all texts, A = softmax(M^T M / sqrt(D)) by rows has the
    singular vectors U and values S. The target of a vector m is m U S, of k columns,
    without gradient. The distance is the mean squared error, plus temperature times
    KL(softmax(target / T) || softmax(size / T)). The authors' randomized decomposition
    leaves the signs of U to chance; here the largest component of a column is positive.

    Returns:
        [B], the mean over a query and its documents.
    """
    layer = gather_size(term.layer, full_width)
    texts = to_float32(jnp.concatenate([layer.all_queries, layer.all_documents]))
    # [D, k] the k largest components, scaled
    scale = jnp.sqrt(jnp.float32(full_width))
    affinity = jax.nn.softmax(dot(texts.T, texts.T) / scale, axis=-1)  # [D, D]
    u, s, _ = jnp.linalg.svd(jax.lax.stop_gradient(affinity))
    u, s = u[:, : term.width], s[: term.width]
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), 0)[None], 0)  # [1, k]
    components = u * jnp.sign(largest) * s[None]

    def measure_text(x):  # [N, D] -> [N]
        x = to_float32(x)
        target = dot(jax.lax.stop_gradient(x), components.T)  # [N, k]
        x = x[:, : term.width]
        error = jnp.mean(jnp.square(x - target), axis=1)
        return error + temperature * _softmax_kl(target, x, temperature)

    return _average_texts(measure_text(layer.queries), measure_text(layer.documents))


def sample_layers(key: Key, blocks: int, count: int, *, first: int = 1) -> list[Array]:
    """Samples distinct layers of first..L-1 in random order; all of them for -1."""
    check_depth(blocks, first + 1)
    layers = jax.random.permutation(key, jnp.arange(first, blocks))
    return list(layers[: len(layers) if count < 0 else count])


def sample_width(key: Key, widths: tuple[int, ...]) -> SampledWidth:
    """Samples one of the widths uniformly."""
    return SampledWidth(jax.random.randint(key, (), 0, len(widths)), tuple(widths))


def check_depth(blocks: int, least: int = 2) -> None:
    """Raises ValueError for a model with fewer layers than `least`."""
    if blocks < least:
        raise ValueError(
            f"this loss needs {least} layers or more, but the model has {blocks}"
        )


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
        q: [B, L+1, D] queries of this device, or [B, L+1, T, D] of their tokens.
        d: [B*K, L+1, D] their documents, or [B*K, L+1, T, D].
    """
    cache = {}

    def gather_size(layer, width):
        # The last layer has two numbers, and a sampled one is known by its identity
        fixed = isinstance(layer, int)
        key = (layer % q.shape[1] if fixed else id(layer), width)
        if key not in cache:
            texts = (x[:, layer, ..., :width] for x in (q, d))
            cache[key] = gather_pairs(*texts)
        return cache[key]

    return gather_size


def _find_largest(tasks: Sequence[Term], depths: int) -> Term | None:
    """The term of the deepest and then widest fixed size; None if all are sampled."""
    fixed = [t for t in tasks if isinstance(t.layer, int) and isinstance(t.width, int)]
    return max(fixed, key=lambda t: (t.layer % depths, t.width), default=None)


def _task_loss(
    loss: Loss, gather_size: GatherSize, full_width: int, labels: Labels, term: Term
) -> tuple[Array, Metrics]:
    """[B] base loss at a size, and its parts, which a sampled width has none of.

    A sampled width selects a branch of `lax.switch`.

    (Replacing the truncated dimensions by zeros would suffice for cosines, but not for
    `angle`, which splits its input into halves.)
    """
    if isinstance(term.width, int):
        return loss.sum_terms(gather_size(term.layer, term.width), labels)

    def loss_at_width(k, vectors):
        texts = [x[..., :k] for x in vectors[:-1]]
        return loss.fn(PairVectors(*texts, vectors.rows), labels)

    branches = [partial(loss_at_width, k) for k in term.width.widths]
    vectors = gather_size(term.layer, full_width)
    return jax.lax.switch(term.width.index, branches, vectors), {}


def _average_texts(of_queries: Array, of_documents: Array) -> Array:
    """[B] mean of the values of a query, [B], and of its documents, [B*K]."""
    grouped = [x.reshape(len(of_queries), -1) for x in (of_queries, of_documents)]
    return jnp.mean(jnp.concatenate(grouped, axis=1), axis=1)


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
