"""Losses over sizes that are sampled at every step: 2DMSE, sentence-transformers'.

Sizes and metrics are as in `matryoshka`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.registry import Loss
from research.losses.size_terms import (
    LAYER_WEIGHTS,
    Term,
    check_dims,
    feature_kl,
    sample_layers,
    sample_width,
    sum_terms,
)
from research.types import Array, Key, SizeLoss

# Weight of layer l from 0 in `st6_adaptive`, whose "linear" differs.
ST6_LAYER_WEIGHTS = {
    **LAYER_WEIGHTS,
    "linear": lambda layer: 1 / (1 + jnp.float32(layer)),
}


def mse2d_v1(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
) -> SizeLoss:
    """2DMSE as first released (Li et al. 2024; SeanLee97/AnglE 74e5ba2).

    Each step samples a layer l from 1..L-1 and a width k from `dims`. The loss is the
    base loss at (L, D), (l, D), (L, k) and (l, k), plus temperature^2 times the feature
    divergence of (l, D) from (L, D); both receive gradient from it.

    Args:
        loss: The base loss.
        dims: Widths to sample from; if empty, the powers of two from 8 up to below D.
        kl_weight: Factor of the divergence.
        kl_temperature: Divisor of the features before the softmax.

    Raises:
        ValueError: The model has no such width, or only one layer.
    """
    kl_scale = kl_weight * kl_temperature**2
    return _sample_size(loss, dims, "uniform", kl_scale, kl_temperature)


def mse2d_later(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
) -> SizeLoss:
    """2DMSE as later released (SeanLee97/AnglE 708220d): `mse2d_v1`, reweighted.

    The sampled layer's two losses are divided by l, and the divergence is multiplied by
    the temperature, not by its square.
    """
    kl_scale = kl_weight * kl_temperature
    return _sample_size(loss, dims, "linear", kl_scale, kl_temperature)


def st5_adaptive(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    layers_per_step: int = 1,
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    kl_weight: float = 1.0,
    kl_temperature: float = 0.3,
) -> SizeLoss:
    """AdaptiveLayerLoss of sentence-transformers up to 5.2; Matryoshka2dLoss with dims.

    The last layer's loss, plus the mean over layers l sampled from 1..L-1 of their
    losses divided by l, plus, for each sampled layer, temperature times the feature
    divergence from the last layer, which receives gradient from it. The Starbucks paper
    calls Matryoshka2dLoss 2DMSE in its STS experiments.

    Args:
        loss: The base loss.
        dims: Widths; each task loss samples its own, so that the full size is trained
            only when the full width is sampled for the last layer. If empty, all terms
            are at full width, as the divergences always are.
        layers_per_step: Number of layers sampled per step, without replacement; -1 for
            all.
        last_weight: Weight of the last layer's loss.
        prior_weight: Weight of the other layers' losses.
        kl_weight: Factor of the divergences.
        kl_temperature: Divisor of the features before the softmax; with 0 there are no
            divergences.

    Raises:
        ValueError: The model has no such width, or only one layer.
    """
    options = AdaptiveOptions(
        dims, layers_per_step, last_weight, prior_weight, kl_weight, kl_temperature
    )
    return _adaptive_layers(
        loss, options, LAYER_WEIGHTS["linear"], first_layer=1, detach_teacher=False
    )


def st6_adaptive(
    loss: Loss,
    *,
    dims: tuple[int, ...] = (),
    layers_per_step: int = 1,
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    kl_weight: float = 1.0,
    kl_temperature: float = 0.3,
    layer_weight: str = "uniform",
) -> SizeLoss:
    """The losses of `st5_adaptive` as in sentence-transformers 6.2.

    Layers are sampled from 0..L-1, where 0 is the embedding layer, and all have the
    same weight. The last layer receives no gradient from the divergences.

    Args:
        loss: The base loss.
        dims: As in `st5_adaptive`.
        layers_per_step: As in `st5_adaptive`.
        last_weight: As in `st5_adaptive`.
        prior_weight: As in `st5_adaptive`.
        kl_weight: As in `st5_adaptive`.
        kl_temperature: As in `st5_adaptive`.
        layer_weight: Weight of layer l: "uniform" 1, "linear" 1/(1 + l) or "log"
            1/(1 + ln(1 + l)).

    Raises:
        ValueError: The model has no such width, or an option is unknown.
    """
    check_option("layer_weight", layer_weight, ST6_LAYER_WEIGHTS)
    options = AdaptiveOptions(
        dims, layers_per_step, last_weight, prior_weight, kl_weight, kl_temperature
    )
    weigh_layer = ST6_LAYER_WEIGHTS[layer_weight]
    return _adaptive_layers(
        loss, options, weigh_layer, first_layer=0, detach_teacher=True
    )


class AdaptiveOptions(NamedTuple):
    """The options that `st5_adaptive` and `st6_adaptive` share."""

    dims: tuple[int, ...]
    layers_per_step: int
    last_weight: float
    prior_weight: float
    kl_weight: float
    kl_temperature: float


def _sample_size(
    loss: Loss,
    dims: tuple[int, ...],
    layer_weight: str,
    kl_scale: float,
    kl_temperature: float,
) -> SizeLoss:
    """2DMSE: the last layer and a sampled one, each at full and at a sampled width."""

    def choose_terms(key: Key, blocks: int, width: int):
        # A layer below the last, and a width for this step
        candidates = tuple(dims) or _powers_of_two(width)
        check_dims(candidates, width)
        layer_key, width_key = jax.random.split(key)
        (layer,) = sample_layers(layer_key, blocks, 1)
        sampled_width = sample_width(width_key, candidates)
        # [] weight of the sampled layer
        weight = LAYER_WEIGHTS[layer_weight](layer)
        # Each of the two layers, at full width and at the sampled width
        tasks = [
            Term(f"{blocks}x{width}", blocks, width, 1.0),
            Term(f"drawnx{width}", layer, width, weight),
            Term(f"{blocks}xdrawn", blocks, sampled_width, 1.0),
            Term("drawnxdrawn", layer, sampled_width, weight),
        ]
        return tasks, [Term(f"drawnx{width}", layer, width, kl_scale)]

    divergence = partial(feature_kl, temperature=kl_temperature, detach_teacher=False)
    return sum_terms(loss, choose_terms, divergence)


def _adaptive_layers(
    loss: Loss,
    options: AdaptiveOptions,
    weigh_layer: Callable[[Array], Array | float],
    *,
    first_layer: int,
    detach_teacher: bool,
) -> SizeLoss:
    """AdaptiveLayerLoss, at widths sampled from `dims` if there are any.

    Args:
        loss: The base loss.
        options: The options.
        weigh_layer: Weight of the task loss at a sampled layer, [] int32.
        first_layer: The lowest layer that is sampled.
        detach_teacher: Whether the last layer gets no gradient from the divergences.
    """
    kl_scale = options.kl_weight * options.kl_temperature
    dims = tuple(options.dims)

    def choose_terms(key: Key, blocks: int, width: int):
        check_dims(dims, width)
        # Sampled layers, and one width for the last layer and for each of them
        key, layers_key = jax.random.split(key)
        layers = sample_layers(
            layers_key, blocks, options.layers_per_step, first=first_layer
        )
        keys = jax.random.split(key, 1 + len(layers))
        widths = [sample_width(k, dims) if dims else width for k in keys]

        # Sampled sizes are named "drawn": names are fixed when the step is traced
        label = "drawn" if dims else width
        tasks = [Term(f"{blocks}x{label}", blocks, widths[0], options.last_weight)]
        # Task losses at sampled widths, divergences at full width
        students = []
        for i, layer in enumerate(layers):
            weight = weigh_layer(layer) * options.prior_weight / len(layers)
            tasks.append(Term(f"drawn{i}x{label}", layer, widths[1 + i], weight))
            if kl_scale:
                students.append(Term(f"drawn{i}x{width}", layer, width, kl_scale))
        return tasks, students

    divergence = partial(
        feature_kl, temperature=options.kl_temperature, detach_teacher=detach_teacher
    )
    return sum_terms(loss, choose_terms, divergence)


def _powers_of_two(width: int) -> tuple[int, ...]:
    """The powers of two from 8 up to below the width."""
    return tuple(2**m for m in range(3, width.bit_length()) if 2**m < width) or (width,)
