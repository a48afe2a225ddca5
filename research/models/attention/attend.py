"""Attention by the implementation that suits the config, length and machine."""

import importlib.util
from functools import partial

import jax

from research.models.attention.blockwise import blockwise
from research.models.attention.dot_product import (
    AttentionMasks,
    Scored,
    Setting,
    attention_logits,
    make_attention_masks,
    softmax_weighted_sum,
)
from research.models.attention.kernels import flash, obstacles, splash
from research.models.config import EncoderConfig
from research.models.positions.relative_rope import relation
from research.models.positions.segment_positions import Positions
from research.types import Array, Params

# Up to so many tokens a row's scores stand whole in memory. On CPU the two cost the
# same at 512, and at 1,024 blocks take a third of the time; the length has not been
# measured on accelerators.
MAX_DENSE_LENGTH = 512


def attend(
    cfg: EncoderConfig, x: Scored, setting: Setting, terms: AttentionMasks | None
) -> Array:
    """Attention of rows to themselves.

    'auto' is plain for rows of at most `PLAIN` tokens; for longer ones, where they can,
    splash on TPU and flash on GPU, and otherwise blockwise.

    Args:
        cfg: the encoder's shape; `cfg.attention` names the implementation.
        x: queries, keys and values of rows [B, S].
        setting: where the tokens stand, dropout, and whether the block is local.
        terms: of the scores, from `whole_terms`.

    Returns:
        [B, S, H, D/H] in the type of the values.

    Raises:
        ValueError: the implementation cannot do what the config wants.
    """
    if terms is not None:
        s = attention_logits(cfg, x.query, x.key, terms, setting.local)
        return softmax_weighted_sum(s, x.v, cfg.dropout, setting.dropout_key)
    dropout = setting.dropout_key is not None and cfg.dropout > 0
    if cfg.attention in KERNELS:
        _check(cfg, dropout)
        return KERNELS[cfg.attention](cfg, x, setting)
    run = {"default": partial(blockwise, cfg)}
    if cfg.attention == "auto":
        for name, platform in _platforms():
            if not obstacles(cfg, name, dropout=dropout):
                run[platform] = partial(KERNELS[name], cfg)
    if len(run) == 1:
        return run["default"](x, setting)
    return jax.lax.platform_dependent(x, setting, **run)


def dense_masks(
    cfg: EncoderConfig,
    relative: Params | None,
    places: Positions,
    *,
    aligned: bool = True,
) -> AttentionMasks | None:
    """The terms of whole rows of scores, the same in every block; None for blockwise.

    Args:
        cfg: the encoder's shape.
        relative: the parameters of the attention bias; None without.
        places: where the tokens stand, [B, S].
        aligned: as in `make_terms`.
    """
    short = places.row_positions.shape[1] <= MAX_DENSE_LENGTH
    if cfg.attention == "plain" or (cfg.attention == "auto" and short):
        how = relation(cfg)
        return make_attention_masks(cfg, how, relative, places, places, aligned=aligned)
    return None


def _platforms() -> list[tuple[str, str]]:
    """The kernels that can be compiled here, and what for; tracing them takes time."""
    found = []
    if jax.default_backend() == "gpu":
        found.append(("flash", "cuda"))
    if importlib.util.find_spec("libtpu"):  # without a TPU too, for those of a topology
        found.append(("splash", "tpu"))
    return found


def _check(cfg: EncoderConfig, dropout: bool) -> None:
    """Raises if the implementation that the config names cannot do what it wants."""
    if found := obstacles(cfg, cfg.attention, dropout=dropout):
        able = ["auto", "blockwise", "plain"]
        able += [name for name in KERNELS if not obstacles(cfg, name, dropout=dropout)]
        raise ValueError(
            f"attention {cfg.attention!r} cannot do {found[0]}; {', '.join(able)} can"
        )


KERNELS = {"flash": flash, "splash": splash}
