"""Attention temperature: TempScale and length-dependent query scaling."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.base import PositionMethod, make_bounded_field
from research.models.positions.segment_positions import Positions
from research.types import Array


def query_scale(cfg: EncoderConfig, positions: Positions) -> Array | float:
    """The product of the query factors of all position methods.

    Args:
        cfg: The encoder's shape.
        positions: Positions of the tokens, [B, S].

    Returns:
        [B, S] float32, or a float where it is the same for all tokens.
    """
    # 1.0 without position methods that scale queries
    scale = 1.0
    for method in cfg.position_methods:
        scale = scale * method.query_scale(cfg, positions)
    return scale


def logit_scale(cfg: EncoderConfig) -> float:
    """The part of `query_scale` that applies to full logits, not only to queries.

    The attention bias and the bound of the softcap are also multiplied by it.
    """
    return math.prod([m.logit_scale for m in cfg.position_methods], start=1.0)


@dataclass(frozen=True, kw_only=True)
class TempScale(PositionMethod):
    """softmax(logits / tau) (Zhou et al. 2025, TempScale).

    A tau below 1 spreads the embeddings of long texts, without training.
    """

    name = "temp_scale"
    bounded = False
    tau: float

    def __post_init__(self):
        if not self.tau > 0:
            raise ValueError(f"temp_scale's tau is {self.tau}; it must be above 0")

    def query_scale(self, cfg: EncoderConfig, positions: Positions) -> float:
        return 1.0 / self.tau

    @property
    def logit_scale(self) -> float:
        return 1.0 / self.tau


@dataclass(frozen=True, kw_only=True)
class LogLength(PositionMethod):
    """Queries times max(1, log n / log L0) for n tokens (Su 2021; LongEmbed).

    Attributes:
        original: L0, the longest text in training; None for the model's `max_len`.
    """

    name = "log_length"
    bounded = False
    depends_on_length = True
    original: int | None = make_bounded_field(2, None)

    def query_scale(self, cfg: EncoderConfig, positions: Positions) -> Array:
        return self._log_ratio(positions.lengths)

    def _log_ratio(self, lengths: Array) -> Array:
        """max(1, log length / log L0), [B, S] float32."""
        # [B, S] log of max(length, L0)
        logs = jnp.log(jnp.maximum(lengths, self.original).astype(jnp.float32))
        # Exactly 1 up to L0, where the quotient could be rounded
        return jnp.where(lengths > self.original, logs / math.log(self.original), 1.0)


class LogPosition(LogLength):
    """Queries times max(1, log(p + 1) / log L0), for p + 1 causally visible tokens."""

    name = "log_position"
    depends_on_length = False

    def check(self, cfg: EncoderConfig) -> None:
        if not cfg.causal:
            raise ValueError(
                "log_position is for causal models, but this one attends to both "
                "sides; use log_length"
            )

    def query_scale(self, cfg: EncoderConfig, positions: Positions) -> Array:
        return self._log_ratio(positions.position_ids + 1)
