"""Merging of parameters: weighted averages, SLERP, task vectors, a search of weights.

All functions take trees of arrays of the same shapes. A task vector is the difference
of a fine-tuned model and the model that it started from, the base. Sums are in float32,
and results have the dtypes of the first tree.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.sharding import path_name
from research.types import Array, Params

# Vectors whose cosine is above this are interpolated linearly: the sine of their angle
# is too small to divide by.
PARALLEL = 1 - 1e-6
SMALLEST_WEIGHT = 1e-3  # of a model in the search


class MergeSearch(NamedTuple):
    """Coefficients that `search_coefficients` found.

    Attributes:
        weights: [N] weights of the task vectors.
        scale: [] factor of the merged task vector.
        losses: Loss of the probe batch at every step, before its update.
    """

    weights: Array
    scale: Array
    losses: list[float]


def check_shapes(trees: Mapping[str, Params]) -> None:
    """Raises ValueError unless all trees have the same parameters and shapes.

    Args:
        trees: Parameters by the names of their models, which the message has.
    """
    (first, tree), *others = trees.items()
    expected = _list_shapes(tree)
    for name, tree in others:
        shapes = _list_shapes(tree)
        for path in [*expected, *shapes]:
            if path not in shapes or path not in expected:
                holder, other = (first, name) if path in expected else (name, first)
                raise ValueError(
                    f"models to merge need the same parameters, but {holder} has "
                    f"{path} and {other} has not"
                )
            if expected[path] != shapes[path]:
                raise ValueError(
                    "models to merge need the same shapes, but the shape of "
                    f"{path} is {expected[path]} in {first} and {shapes[path]} in "
                    f"{name}"
                )


def average(trees: Sequence[Params], weights: Sequence[float] = ()) -> Params:
    """The weighted mean of several models (model soup, Wortsman et al. 2022).

    It is the first model plus the mean of the differences from it, so that equal models
    give exactly the same model.

    Args:
        trees: Parameters of N models.
        weights: N weights, relative to each other; all equal if empty.

    Raises:
        ValueError: The number of weights differs from that of the models, or they are
            all 0.
    """
    weights = list(weights) or [1.0] * len(trees)
    if len(weights) != len(trees):
        raise ValueError(f"{len(weights)} weights are given for {len(trees)} models")
    if not sum(weights) > 0:
        raise ValueError(f"the weights {tuple(weights)} should have a sum above 0")
    shares = [weight / sum(weights) for weight in weights]

    def average_leaf(first, *others):
        start = _to_float32(first)
        # The first model's share is what the others leave
        changes = [
            share * (_to_float32(other) - start)
            for share, other in zip(shares[1:], others, strict=True)
        ]
        return sum(changes, start).astype(first.dtype)

    return jax.tree.map(average_leaf, *trees)


def subtract(tree: Params, base: Params) -> Params:
    """The task vector of a model: its float32 difference from the base."""
    return jax.tree.map(lambda x, y: _to_float32(x) - _to_float32(y), tree, base)


def add_task_vectors(
    base: Params, vectors: Sequence[Params], scales: Sequence[float | Array]
) -> Params:
    """The base plus scaled task vectors (task arithmetic, Ilharco et al. 2023).

    Args:
        base: Parameters of the base.
        vectors: N task vectors.
        scales: N factors; a negative one removes what its vector has learned.
    """

    def add(start, *changes):
        total = _to_float32(start)
        for change, scale in zip(changes, scales, strict=True):
            total = total + scale * change
        return total.astype(start.dtype)

    return jax.tree.map(add, base, *vectors)


def slerp(first: Params, second: Params, t: float | Array) -> Params:
    """Spherical linear interpolation of two trees, read as two long vectors.

    With the angle w between them, (sin((1-t) w) first + sin(t w) second) / sin w. The
    angle is that of all parameters together; vectors in the same direction, or in
    opposite ones, are interpolated linearly.

    Args:
        first: Parameters or a task vector, at t = 0.
        second: Those at t = 1.
        t: Position between them.
    """
    # Their angle: [] float32
    product, *squares = (
        _sum_products(x, y)
        for x, y in ((first, second), (first, first), (second, second))
    )
    norms = jnp.sqrt(jnp.maximum(squares[0] * squares[1], 1e-30))
    cosine = product / norms
    is_linear = jnp.abs(cosine) > PARALLEL
    # The gradient of arccos is infinite at 1, also where it is not used
    angle = jnp.arccos(jnp.where(is_linear, 0.0, cosine))
    # Coefficients of both
    start = jnp.where(is_linear, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    end = jnp.where(is_linear, t, jnp.sin(t * angle) / jnp.sin(angle))

    def blend(x, y):
        return (start * _to_float32(x) + end * _to_float32(y)).astype(x.dtype)

    return jax.tree.map(blend, first, second)


def fold_slerp(vectors: Sequence[Params], weights: Sequence[Array] | Array) -> Params:
    """SLERP of several vectors, one after the other, as Self-Positioning merges them.

    The next vector of weight a is merged at t = a / (a + m), where m is the mean weight
    of those that are merged already.

    Args:
        vectors: N trees.
        weights: N positive weights, relative to each other.
    """
    merged, mean = vectors[0], weights[0]
    for count, vector in enumerate(vectors[1:], 1):
        weight = weights[count]
        merged = slerp(merged, vector, weight / (mean + weight))
        mean = (count * mean + weight) / (count + 1)
    return merged


def search_coefficients(
    loss: Callable[[Params, Any], Array],
    base: Params,
    vectors: Sequence[Params],
    batches: Iterable[Any],
    *,
    learning_rate: float = 5e-3,
    penalty: float = 0.05,
) -> MergeSearch:
    """Weights and scale of task vectors that minimize a loss (Self-Positioning).

    Gradient descent on loss(base + s * fold_slerp(vectors, weights)) + penalty * s over
    the weights and the scale s, which begin at 1; all parameters stay as they are
    (arXiv:2410.15035).

    Args:
        loss: (parameters, batch) -> [] loss.
        base: Parameters of the base.
        vectors: N task vectors.
        batches: Probe batches, one for each step.
        learning_rate: Step size.
        penalty: Weight of the scale in the objective.

    Raises:
        ValueError: There is no batch, or a loss is not finite.
    """

    # A step of gradient descent on N + 1 numbers
    @jax.jit
    def update(coefficients, base, vectors, batch):
        def compute_objective(coefficients):
            merged = fold_slerp(vectors, coefficients["weights"])
            scale = coefficients["scale"]
            value = loss(add_task_vectors(base, [merged], [scale]), batch)
            return value + penalty * scale, value

        grads, value = jax.grad(compute_objective, has_aux=True)(coefficients)
        coefficients = jax.tree.map(
            lambda x, grad: jnp.maximum(x - learning_rate * grad, SMALLEST_WEIGHT),
            coefficients,
            grads,
        )
        return coefficients, value

    # All models alike, at their full distance from the base
    coefficients = {"weights": jnp.ones(len(vectors)), "scale": jnp.ones(())}
    losses = []
    for batch in batches:
        coefficients, value = update(coefficients, base, vectors, batch)
        losses.append(float(value))
        if not jnp.isfinite(value):
            raise ValueError(
                f"the probe loss is {losses[-1]} at step {len(losses)}: the models may "
                "not come from the same base"
            )
    if not losses:
        raise ValueError("the search needs at least one probe batch")
    return MergeSearch(**coefficients, losses=losses)


def _to_float32(x: Array) -> Array:
    return x.astype("float32")


def _sum_products(first: Params, second: Params) -> Array:
    """[] float32 inner product of two trees."""
    products = jax.tree.map(
        lambda x, y: jnp.sum(jnp.multiply(_to_float32(x), _to_float32(y))),
        first,
        second,
    )
    return sum(jax.tree.leaves(products))


def _list_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """{path of a parameter: its shape}"""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
