"""Losses over sizes that are sampled at every step: 2DMSE, sentence-transformers'.

Sizes and metrics are as in `matryoshka`.
"""

from dataclasses import dataclass
from functools import partial

import jax

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
from research.types import Key, SizeLoss


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
    """AdaptiveLayerLoss of sentence-transformers; the defaults are those up to 5.2.

    The last layer's loss, plus the mean over layers sampled from 1..L-1 of their
    weighted losses, plus, for each sampled layer, temperature times the feature
    divergence from the last layer. Later releases weight layers uniformly, detach the
    teacher, and also sample the embedding layer (not supported here).

    Args:
        loss: The base loss.
        layers_per_step: Number of layers sampled per step, without replacement; -1 for
            all.
        last_weight: Weight of the last layer's loss.
        prior_weight: Weight of the other layers' losses.
        kl_weight: Factor of the divergences.
        kl_temperature: Divisor of the features before the softmax; with 0 there are no
            divergences.
        layer_weight: Weight of layer l: "uniform" 1, "linear" 1/l or "log"
            1/(1 + ln(1 + l)).
        detach_teacher: Whether the last layer gets no gradient from the divergences.

    Raises:
        ValueError: The model has only one layer, or an option is unknown.
    """
    options = AdaptiveOptions(
        dims=(),
        layers_per_step=layers_per_step,
        last_weight=last_weight,
        prior_weight=prior_weight,
        kl_weight=kl_weight,
        kl_temperature=kl_temperature,
        layer_weight=layer_weight,
        detach_teacher=detach_teacher,
    )
    return _adaptive_layers(loss, options)


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
    """Matryoshka2dLoss of sentence-transformers: `st_adaptive` at sampled widths.

    Each task loss samples its own width from `dims`, so the full size is trained only
    when the full width is sampled for the last layer. The divergences are at full
    width. The Starbucks paper calls this loss 2DMSE in its STS experiments.

    Args:
        loss: The base loss.
        dims: Widths to sample from.
        layers_per_step: As in `st_adaptive`.
        last_weight: As in `st_adaptive`.
        prior_weight: As in `st_adaptive`.
        kl_weight: As in `st_adaptive`.
        kl_temperature: As in `st_adaptive`.
        layer_weight: As in `st_adaptive`.
        detach_teacher: As in `st_adaptive`.

    Raises:
        ValueError: The model has no such width or only one layer, or an option is
            unknown.
    """
    if not dims:
        raise ValueError("st_matryoshka2d needs at least one width in dims")
    options = AdaptiveOptions(
        dims=tuple(dims),
        layers_per_step=layers_per_step,
        last_weight=last_weight,
        prior_weight=prior_weight,
        kl_weight=kl_weight,
        kl_temperature=kl_temperature,
        layer_weight=layer_weight,
        detach_teacher=detach_teacher,
    )
    return _adaptive_layers(loss, options)


@dataclass(frozen=True)
class AdaptiveOptions:
    """The options of `st_matryoshka2d`; with empty dims, those of `st_adaptive`."""

    dims: tuple[int, ...]
    layers_per_step: int
    last_weight: float
    prior_weight: float
    kl_weight: float
    kl_temperature: float
    layer_weight: str
    detach_teacher: bool


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


def _adaptive_layers(loss: Loss, options: AdaptiveOptions) -> SizeLoss:
    """AdaptiveLayerLoss, at widths sampled from `dims` if there are any."""
    check_option("layer_weight", options.layer_weight, LAYER_WEIGHTS)
    kl_scale = options.kl_weight * options.kl_temperature
    dims = options.dims

    def choose_terms(key: Key, blocks: int, width: int):
        check_dims(dims, width)
        # Sampled layers, and one width for the last layer and for each of them
        key, layers_key = jax.random.split(key)
        layers = sample_layers(layers_key, blocks, options.layers_per_step)
        keys = jax.random.split(key, 1 + len(layers))
        widths = [sample_width(k, dims) if dims else width for k in keys]

        # Sampled sizes are named "drawn": names are fixed when the step is traced
        label = "drawn" if dims else width
        tasks = [Term(f"{blocks}x{label}", blocks, widths[0], options.last_weight)]
        # Task losses at sampled widths, divergences at full width
        students = []
        for i, layer in enumerate(layers):
            weight = LAYER_WEIGHTS[options.layer_weight](layer)
            weight *= options.prior_weight / len(layers)
            tasks.append(Term(f"drawn{i}x{label}", layer, widths[1 + i], weight))
            if kl_scale:
                students.append(Term(f"drawn{i}x{width}", layer, width, kl_scale))
        return tasks, students

    divergence = partial(
        feature_kl,
        temperature=options.kl_temperature,
        detach_teacher=options.detach_teacher,
    )
    return sum_terms(loss, choose_terms, divergence)


def _powers_of_two(width: int) -> tuple[int, ...]:
    """The powers of two from 8 up to below the width."""
    return tuple(2**m for m in range(3, width.bit_length()) if 2**m < width) or (width,)
