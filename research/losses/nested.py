"""Losses over the sizes of an elastic model, made of a loss over one embedding.

A size (l, k) is the first k dimensions of the pooled output of block l, normalised (by
the loss, if at all) after the cut. Index 0 of the depth axis is the embedding layer.
Every metric `task/{l}x{k}` is the base loss at a size, `kl/{l}x{k}` the divergence of a
size from its teacher before any weight.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses.contrastive import similarities
from research.structs import Array, Key, Labels, Loss, Nested

Pairs = tuple[tuple[int, int], ...]


def none(loss: Loss) -> Nested:
    """The loss of the last layer at full width, and nothing else."""
    return Nested(lambda q, d, labels, key: (loss(q, d, labels), {}), deep=False)


def single(loss: Loss, *, depth: int = -1, dim: int = -1) -> Nested:
    """The loss at one size; -1 stands for the last layer and for full width.

    Raises:
        ValueError: the model has no such size.
    """

    def run(q, d, labels, key):
        if q.ndim == 3:
            blocks = q.shape[1] - 1
            _check_pairs([(blocks if depth == -1 else depth, 1)], blocks, q.shape[-1])
            q, d = q[:, depth], d[:, depth]
        width = q.shape[-1] if dim == -1 else dim
        _check_dims([width], q.shape[-1])
        return loss(q[:, :width], d[:, :width], labels), {}

    return Nested(run, deep=depth != -1)


def matryoshka(
    loss: Loss, *, dims: tuple[int, ...], weights: tuple[float, ...] = ()
) -> Nested:
    """Weighted sum of the loss over prefixes of the embedding (Kusupati et al. 2022).

    Args:
        loss: the base loss.
        dims: widths; full width is trained only if it is one of them.
        weights: one for each width; all 1 if empty.

    Raises:
        ValueError: the model has no such width, or not one weight for each width.
    """
    if weights and len(weights) != len(dims):
        raise ValueError(f"{len(weights)} weights are given for {len(dims)} dims")

    def run(q, d, labels, key):
        _check_dims(dims, q.shape[-1])
        losses = [loss(q[:, :k], d[:, :k], labels) for k in dims]
        metrics = {f"task/{k}": jnp.mean(x) for k, x in zip(dims, losses, strict=True)}
        weighted = zip(weights or (1.0,) * len(dims), losses, strict=True)
        return sum(c * x for c, x in weighted), metrics

    return Nested(run, deep=False)


def two_dimensional(
    loss: Loss,
    *,
    pairs: Pairs,
    weights: tuple[float, ...] = (),
    reduction: str = "sum",
    layer_weight: str = "uniform",
    kl_on: str = "none",
    kl_teacher: str = "same_prefix",
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
    detach_teacher: bool = False,
    similarity: str = "cosine",
) -> Nested:
    """The loss at fixed sizes, smaller ones pulled towards the last layer.

    Args:
        loss: the base loss.
        pairs: sizes (depth, dim), depth from 1; the full size is trained only if it is
            one of them.
        weights: one for each size's task loss; all 1 if empty.
        reduction: "sum" of the sizes' terms, or their "mean".
        layer_weight: of the task loss at depth l below the last: "uniform" 1, "linear"
            1/l or "log" 1/(1 + ln(1 + l)).
        kl_on: "none", "features" (softmax over the dimensions of each unnormalised
            embedding) or "scores" (over each query's similarities to all documents).
        kl_teacher: last layer's "same_prefix", or its "full" width ("scores" only); a
            size that is its own teacher has no term.
        kl_weight: multiplies the divergences.
        kl_temperature: divides the features or similarities before the softmax.
        detach_teacher: whether the teacher gets no gradient from the divergence.
        similarity: "cosine" or "dot", of the "scores".

    Raises:
        ValueError: the model has no such size, not one weight for each, or an unknown
            option.
    """
    _check("reduction", reduction, ("sum", "mean"))
    _check("layer_weight", layer_weight, tuple(_LAYER_WEIGHTS))
    _check("kl_on", kl_on, ("none", "features", "scores"))
    _check("kl_teacher", kl_teacher, ("same_prefix", "full"))
    if (kl_on, kl_teacher) == ("features", "full"):
        raise ValueError("kl_teacher 'full' has more features than a narrower student")
    if weights and len(weights) != len(pairs):
        raise ValueError(f"{len(weights)} weights are given for {len(pairs)} pairs")
    share = 1 / len(pairs) if reduction == "mean" else 1.0
    divergence = partial(_feature_kl, temperature=kl_temperature, detach=detach_teacher)
    if kl_on == "scores":
        divergence = partial(
            _score_kl,
            temperature=kl_temperature,
            detach=detach_teacher,
            similarity=similarity,
            full=kl_teacher == "full",
        )

    def choose(key, blocks, width):
        _check_pairs(pairs, blocks, width)
        tasks, students = [], []
        for (depth, dim), c in zip(pairs, weights or (1.0,) * len(pairs), strict=True):
            c *= _LAYER_WEIGHTS[layer_weight](depth) if depth < blocks else 1.0
            name = f"{depth}x{dim}"
            tasks.append(_Term(name, depth, dim, c * share))
            teacher = (blocks, width if kl_teacher == "full" else dim)
            if kl_on != "none" and (depth, dim) != teacher:
                students.append(_Term(name, depth, dim, kl_weight * share))
        return tasks, students

    return Nested(partial(_total, loss, choose, divergence), deep=True)


def starbucks_sts(loss: Loss, *, pairs: Pairs, kl_weight: float = 1.0) -> Nested:
    """Starbucks fine-tuning as its STS code does it (Zhuang et al. 2024).

    The sum, not the mean, over the sizes of the loss and, below the last layer, of
    0.3 * kl_weight * KL(softmax(teacher) || softmax(size)) over the features of every
    query and document. The teacher is the last layer's prefix of the same width and
    does get gradient; 0.3, there called a temperature, divides nothing.

    Args:
        loss: the base loss; theirs is `infonce` of cosines at 0.05 (or `cosent`).
        pairs: sizes (depth, dim), the full one among them.
        kl_weight: multiplies the divergences, beside 0.3.
    """
    return two_dimensional(
        loss, pairs=pairs, kl_on="features", kl_weight=0.3 * kl_weight
    )


def starbucks_retrieval(
    loss: Loss,
    *,
    pairs: Pairs,
    kl_weight: float = 1.0,
    temperature: float = 1.0,
    similarity: str = "dot",
) -> Nested:
    """Starbucks fine-tuning as its retrieval code does it, which is another loss.

    The sum over the sizes of the loss and, except at the full size, of
    kl_weight * KL(softmax(teacher) || softmax(size)) over each query's similarities to
    all documents of the batch. The teacher is the full size and gets no gradient.

    Args:
        loss: the base loss; theirs is `infonce` of dot products at 1.
        pairs: sizes (depth, dim), the full one among them.
        kl_weight: multiplies the divergences.
        temperature: divides the similarities; the loss's.
        similarity: "cosine" or "dot"; the loss's.
    """
    return two_dimensional(
        loss,
        pairs=pairs,
        kl_on="scores",
        kl_teacher="full",
        kl_weight=kl_weight,
        kl_temperature=temperature,
        detach_teacher=True,
        similarity=similarity,
    )


def mse2d_v1(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
) -> Nested:
    """2DMSE as first released (Li et al. 2024; SeanLee97/AnglE 74e5ba2).

    With a layer l drawn from 1..L-1 and a width k from `dims` at each step: the loss at
    (L, D), (l, D), (L, k) and (l, k), plus temperature^2 times the feature divergence
    of (l, D) from (L, D), which gives gradient to both.

    Args:
        loss: the base loss.
        dims: widths to draw from; the powers of two from 8 to below D if empty.
        kl_weight: multiplies the divergence.
        kl_temperature: divides the features before the softmax.

    Raises:
        ValueError: the model has no such width, or a single layer.
    """
    scale = kl_weight * kl_temperature**2
    return _drawn_2d(loss, dims, "uniform", scale, kl_temperature)


def mse2d_later(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
) -> Nested:
    """2DMSE as later released (SeanLee97/AnglE 708220d): `mse2d_v1`, but reweighted.

    The drawn layer's two losses are divided by l, and the divergence is multiplied by
    the temperature, not by its square.
    """
    scale = kl_weight * kl_temperature
    return _drawn_2d(loss, dims, "linear", scale, kl_temperature)


def st_adaptive(
    loss: Loss,
    *,
    layers_per_step: int = 1,
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    kl_weight: float = 1.0,
    kl_temperature: float = 0.3,
    layer_weight: str = "linear",
    detach_teacher: bool = False,
) -> Nested:
    """AdaptiveLayerLoss of sentence-transformers, by default as it was until 5.2.

    The last layer's loss, plus the mean over layers drawn from 1..L-1 of their weighted
    losses, plus for each temperature times the feature divergence from the last layer.
    Later releases weight layers uniformly, detach the teacher, and draw the embedding
    layer too (which this never does).

    Args:
        loss: the base loss.
        layers_per_step: layers drawn at each step, without replacement; -1 for all.
        last_weight: of the last layer's loss.
        prior_weight: of the other layers' losses.
        kl_weight: multiplies the divergences.
        kl_temperature: divides the features before the softmax; 0 for no divergence.
        layer_weight: of layer l: "uniform" 1, "linear" 1/l or "log" 1/(1 + ln(1 + l)).
        detach_teacher: whether the last layer gets no gradient from the divergences.

    Raises:
        ValueError: the model has a single layer, or an unknown option.
    """
    options = (layers_per_step, last_weight, prior_weight, layer_weight)
    scale = kl_weight * kl_temperature
    divergence = partial(_feature_kl, temperature=kl_temperature, detach=detach_teacher)
    choose = _adaptive((), *options, scale)
    return Nested(partial(_total, loss, choose, divergence), deep=True)


def st_matryoshka2d(
    loss: Loss,
    *,
    dims: tuple[int, ...],
    layers_per_step: int = 1,
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    kl_weight: float = 1.0,
    kl_temperature: float = 0.3,
    layer_weight: str = "linear",
    detach_teacher: bool = False,
) -> Nested:
    """Matryoshka2dLoss of sentence-transformers: `st_adaptive` at drawn widths.

    Each of the task losses draws its own width from `dims`, so the full size is trained
    only when the last layer draws full width; the divergences are at full width. This
    is what the Starbucks paper calls 2DMSE in its STS experiments.

    Args:
        loss: the base loss.
        dims: widths to draw from.
        layers_per_step: this and the rest as in `st_adaptive`.
        last_weight: see there.
        prior_weight: see there.
        kl_weight: see there.
        kl_temperature: see there.
        layer_weight: see there.
        detach_teacher: see there.

    Raises:
        ValueError: the model has no such width, a single layer, or an unknown option.
    """
    if not dims:
        raise ValueError("st_matryoshka2d needs at least one width in dims")
    options = (layers_per_step, last_weight, prior_weight, layer_weight)
    scale = kl_weight * kl_temperature
    divergence = partial(_feature_kl, temperature=kl_temperature, detach=detach_teacher)
    choose = _adaptive(tuple(dims), *options, scale)
    return Nested(partial(_total, loss, choose, divergence), deep=True)


def ese(loss: Loss, *, dim: int = 128) -> Nested:
    """Espresso sentence embeddings (Li et al. 2024; SeanLee97/AnglE), task losses only.

    The loss at (L, D) and (L, k), plus 1/(L-1) of the sum over i = 0..L-2, the
    embedding layer first, of the loss at (i, k) / (1 + ln(1 + i)): block L-1 is never
    trained, as in their code. Their alignment of the prefixes with a target from a
    singular value decomposition is left out.

    Args:
        loss: the base loss.
        dim: the width k.

    Raises:
        ValueError: the model has no such width, or a single layer.
    """

    def choose(key, blocks, width):
        _check_dims([dim], width)
        _check_depth(blocks)
        tasks = [
            _Term(f"{blocks}x{width}", blocks, width, 1.0),
            _Term(f"{blocks}x{dim}", blocks, dim, 1.0),
        ]
        for i in range(blocks - 1):
            c = _LAYER_WEIGHTS["log"](i) / (blocks - 1)
            tasks.append(_Term(f"{i}x{dim}", i, dim, c))
        return tasks, []

    return Nested(partial(_total, loss, choose, None), deep=True)


class _Drawn(NamedTuple):
    """One of several widths, known only when the step runs."""

    index: Array
    widths: tuple[int, ...]


class _Term(NamedTuple):
    """A size, drawn or fixed, with the weight that one of its terms has in the sum."""

    name: str
    layer: int | Array
    width: int | _Drawn
    weight: float | Array


# terms(key, L, D) -> the sizes with a task loss, and the sizes with a divergence.
_Choose = Callable[[Key, int, int], tuple[Sequence[_Term], Sequence[_Term]]]


def _total(loss: Loss, choose: _Choose, divergence, q, d, labels: Labels, key: Key):
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


def _task(loss: Loss, q: Array, d: Array, labels: Labels, term: _Term) -> Array:
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


def _feature_kl(q, d, term, *, temperature: float, detach: bool) -> Array:
    """[B] KL(last layer || size) over features, mean over a query and its documents.

    All rows count the same in its mean: 1/(B + B*K) of the sum over all texts.
    """
    rows = [_kl(*_two(x, term, detach), temperature) for x in (q, d)]
    grouped = jnp.concatenate([r.reshape(q.shape[0], -1) for r in rows], axis=1)
    return jnp.mean(grouped, axis=1)


def _two(x: Array, term: _Term, detach: bool) -> tuple[Array, Array]:
    """The last layer's prefix [N, k] and the size's [N, k]."""
    teacher = x[:, -1, : term.width]
    teacher = jax.lax.stop_gradient(teacher) if detach else teacher
    return teacher, x[:, term.layer, : term.width]


def _score_kl(
    q, d, term, *, temperature: float, detach: bool, similarity: str, full: bool
) -> Array:
    """[B] KL(last layer || size) over each query's similarities to all documents."""
    width = q.shape[-1] if full else term.width
    teacher = similarities(q[:, -1, :width], d[:, -1, :width], similarity)
    teacher = jax.lax.stop_gradient(teacher) if detach else teacher
    q, d = q[:, term.layer, : term.width], d[:, term.layer, : term.width]
    return _kl(teacher, similarities(q, d, similarity), temperature)


def _kl(teacher: Array, student: Array, temperature: float) -> Array:
    """[N] KL(softmax(teacher / T) || softmax(student / T)) of logits [N, C]."""
    teacher = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    student = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def _drawn_2d(loss, dims, layer_weight, kl_scale, kl_temperature) -> Nested:
    """2DMSE: the last layer and a drawn one, each at full and at a drawn width."""

    def choose(key, blocks, width):
        candidates = tuple(dims) or _powers_of_two(width)
        _check_dims(candidates, width)
        layer_key, width_key = jax.random.split(key)
        (layer,) = _drawn_layers(layer_key, blocks, 1)
        drawn = _drawn_width(width_key, candidates)
        c = _LAYER_WEIGHTS[layer_weight](layer)
        tasks = [
            _Term(f"{blocks}x{width}", blocks, width, 1.0),
            _Term(f"drawnx{width}", layer, width, c),
            _Term(f"{blocks}xdrawn", blocks, drawn, 1.0),
            _Term("drawnxdrawn", layer, drawn, c),
        ]
        return tasks, [_Term(f"drawnx{width}", layer, width, kl_scale)]

    divergence = partial(_feature_kl, temperature=kl_temperature, detach=False)
    return Nested(partial(_total, loss, choose, divergence), deep=True)


def _adaptive(
    dims, layers_per_step, last_weight, prior_weight, layer_weight, kl_scale
) -> _Choose:
    """The terms of AdaptiveLayerLoss, at widths drawn from `dims` if there are any."""
    _check("layer_weight", layer_weight, tuple(_LAYER_WEIGHTS))

    def choose(key, blocks, width):
        _check_dims(dims, width)
        key, layers_key = jax.random.split(key)
        layers = _drawn_layers(layers_key, blocks, layers_per_step)
        keys = jax.random.split(key, 1 + len(layers))
        widths = [_drawn_width(k, dims) if dims else width for k in keys]
        label = "drawn" if dims else width
        tasks = [_Term(f"{blocks}x{label}", blocks, widths[0], last_weight)]
        students = []
        for i, layer in enumerate(layers):
            c = _LAYER_WEIGHTS[layer_weight](layer) * (prior_weight / len(layers))
            tasks.append(_Term(f"drawn{i}x{label}", layer, widths[1 + i], c))
            if kl_scale:
                students.append(_Term(f"drawn{i}x{width}", layer, width, kl_scale))
        return tasks, students

    return choose


def _drawn_layers(key: Key, blocks: int, count: int) -> list[Array]:
    """Different layers of 1..L-1 in a random order, or all of them for -1."""
    _check_depth(blocks)
    layers = jax.random.permutation(key, jnp.arange(1, blocks))
    return list(layers[: blocks - 1 if count < 0 else min(count, blocks - 1)])


def _drawn_width(key: Key, widths: tuple[int, ...]) -> _Drawn:
    return _Drawn(jax.random.randint(key, (), 0, len(widths)), tuple(widths))


def _powers_of_two(width: int) -> tuple[int, ...]:
    """8, 16, ... below the width."""
    return tuple(2**m for m in range(3, width.bit_length()) if 2**m < width) or (width,)


def _check(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; it can be {' or '.join(allowed)}")


def _check_depth(blocks: int) -> None:
    if blocks < 2:
        raise ValueError("this loss needs 2 layers or more, but the model has 1")


def _check_dims(dims: Sequence[int], width: int) -> None:
    for k in dims:
        if not 1 <= k <= width:
            raise ValueError(f"dim {k} is not in the model, which has {width}")


def _check_pairs(pairs: Pairs, blocks: int, width: int) -> None:
    for depth, dim in pairs:
        if not (1 <= depth <= blocks and 1 <= dim <= width):
            raise ValueError(
                f"size ({depth}, {dim}) is not in the model, which has {blocks} layers "
                f"and {width} dims"
            )


# The weight of layer l's task loss, an int or [] int32.
_LAYER_WEIGHTS = {
    "uniform": lambda layer: 1.0,
    "linear": lambda layer: 1 / jnp.float32(layer),
    "log": lambda layer: 1 / (1 + jnp.log1p(jnp.float32(layer))),
}

NESTED = {
    "none": none,
    "single": single,
    "matryoshka": matryoshka,
    "two_dimensional": two_dimensional,
    "starbucks_sts": starbucks_sts,
    "starbucks_retrieval": starbucks_retrieval,
    "2dmse_v1": mse2d_v1,
    "2dmse_later": mse2d_later,
    "st_adaptive": st_adaptive,
    "st_matryoshka2d": st_matryoshka2d,
    "ese": ese,
}
