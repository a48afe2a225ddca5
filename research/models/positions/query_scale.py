"""How sharp attention is: factors of the queries that depend on the text's length."""

import math

import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.segment_positions import Positions
from research.types import Array


def query_scale(cfg: EncoderConfig, places: Positions) -> Array | float:
    """The product of the factors of the queries that `cfg.extensions` names.

    Returns:
        [B, S] float32, or a float where it is the same for all tokens.
    """
    factor = 1.0
    for name, arguments in cfg.position_methods:
        if name in TEMPERATURES:
            factor = factor * TEMPERATURES[name](cfg, places, **dict(arguments))
    return factor


def logit_scale(cfg: EncoderConfig) -> float:
    """The part of `query_factor` that is for whole scores, not only for queries.

    An attention bias is multiplied by it too, and so is the bound of a softcap.
    """
    scales = [dict(rest) for name, rest in cfg.position_methods if name == "temp_scale"]
    return math.prod(temp_scale(cfg, None, **scale) for scale in scales)


def temp_scale(cfg: EncoderConfig, places: Positions | None, *, tau: float) -> float:
    """1 / tau: softmax(scores / tau) (Zhou et al. 2025, TempScale).

    A tau below 1 keeps the embeddings of long texts apart, with no training.

    Raises:
        ValueError: tau is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"temp_scale's tau is {tau}; it must be above 0")
    return 1.0 / tau


def log_length(cfg: EncoderConfig, places: Positions, *, original: int) -> Array:
    """max(1, log n / log L0), n the tokens of the text (Su 2021; LongEmbed).

    Args:
        cfg: the encoder's shape.
        places: where the tokens stand, [B, S].
        original: L0, the longest text of the training.

    Returns:
        [B, S] float32; 1 for texts of at most L0 tokens.
    Raises:
        ValueError: `original` is below 2.
    """
    return _log_ratio("log_length", places.lengths, original)


def log_position(cfg: EncoderConfig, places: Positions, *, original: int) -> Array:
    """max(1, log(p + 1) / log L0): p + 1 tokens are what a causal token at p sees.

    Args:
        cfg: a causal encoder.
        places: where the tokens stand, [B, S].
        original: L0, the longest text of the training.

    Returns:
        [B, S] float32; 1 for the first L0 tokens of a text.
    Raises:
        ValueError: the encoder is not causal, or `original` is below 2.
    """
    if not cfg.causal:
        raise ValueError(
            "log_position is for causal models, but this one sees both sides; "
            "use log_length"
        )
    return _log_ratio("log_position", places.position_ids + 1, original)


def _log_ratio(name: str, seen: Array, original: int) -> Array:
    if original < 2:
        raise ValueError(f"{name}'s original is {original}; it must be at least 2")
    logs = jnp.log(jnp.maximum(seen, original).astype(jnp.float32))
    # Not the rounded quotient: up to L0 nothing changes, to the bit.
    return jnp.where(seen > original, logs / math.log(original), 1.0)


TEMPERATURES = {
    "temp_scale": temp_scale,
    "log_length": log_length,
    "log_position": log_position,
}
