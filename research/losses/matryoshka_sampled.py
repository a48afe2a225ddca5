"""Losses over sizes of which some are drawn anew at every step.

Sizes and metrics are as in `nested`.
"""

from functools import partial

import jax

from research.config_sections import check_option
from research.losses.size_terms import (
    LAYER_WEIGHTS,
    Term,
    check_dims,
    drawn_layers,
    drawn_width,
    elastic,
    feature_kl,
)
from research.types import Loss, SizeLoss


def mse2d_v1(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
) -> SizeLoss:
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
) -> SizeLoss:
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
) -> SizeLoss:
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
    weights = (layers_per_step, last_weight, prior_weight, layer_weight)
    return _adaptive(loss, (), *weights, kl_weight, kl_temperature, detach_teacher)


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
) -> SizeLoss:
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
    weights = (layers_per_step, last_weight, prior_weight, layer_weight)
    return _adaptive(
        loss, tuple(dims), *weights, kl_weight, kl_temperature, detach_teacher
    )


def _drawn_2d(loss, dims, layer_weight, kl_scale, kl_temperature) -> SizeLoss:
    """2DMSE: the last layer and a drawn one, each at full and at a drawn width."""

    def choose(key, blocks, width):
        candidates = tuple(dims) or _powers_of_two(width)
        check_dims(candidates, width)
        layer_key, width_key = jax.random.split(key)
        (layer,) = drawn_layers(layer_key, blocks, 1)
        drawn = drawn_width(width_key, candidates)
        c = LAYER_WEIGHTS[layer_weight](layer)
        tasks = [
            Term(f"{blocks}x{width}", blocks, width, 1.0),
            Term(f"drawnx{width}", layer, width, c),
            Term(f"{blocks}xdrawn", blocks, drawn, 1.0),
            Term("drawnxdrawn", layer, drawn, c),
        ]
        return tasks, [Term(f"drawnx{width}", layer, width, kl_scale)]

    divergence = partial(feature_kl, temperature=kl_temperature, detach=False)
    return elastic(loss, choose, divergence)


def _adaptive(
    loss,
    dims,
    layers_per_step,
    last_weight,
    prior_weight,
    layer_weight,
    kl_weight,
    kl_temperature,
    detach,
) -> SizeLoss:
    """AdaptiveLayerLoss, at widths drawn from `dims` if there are any."""
    check_option("layer_weight", layer_weight, LAYER_WEIGHTS)
    kl_scale = kl_weight * kl_temperature

    def choose(key, blocks, width):
        check_dims(dims, width)
        key, layers_key = jax.random.split(key)
        layers = drawn_layers(layers_key, blocks, layers_per_step)
        keys = jax.random.split(key, 1 + len(layers))
        widths = [drawn_width(k, dims) if dims else width for k in keys]
        label = "drawn" if dims else width
        tasks = [Term(f"{blocks}x{label}", blocks, widths[0], last_weight)]
        students = []
        for i, layer in enumerate(layers):
            c = LAYER_WEIGHTS[layer_weight](layer) * (prior_weight / len(layers))
            tasks.append(Term(f"drawn{i}x{label}", layer, widths[1 + i], c))
            if kl_scale:
                students.append(Term(f"drawn{i}x{width}", layer, width, kl_scale))
        return tasks, students

    divergence = partial(feature_kl, temperature=kl_temperature, detach=detach)
    return elastic(loss, choose, divergence)


def _powers_of_two(width: int) -> tuple[int, ...]:
    """8, 16, ... below the width."""
    return tuple(2**m for m in range(3, width.bit_length()) if 2**m < width) or (width,)
