"""Masked language modelling with encoders that never see a mask token."""

from functools import partial
from typing import NamedTuple

import jax

from research.losses.token_prediction import PredictedTokens, predictions
from research.models import decoders, heads, token_ops
from research.models import encoder as models_encoder
from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT
from research.models.positions.segment_positions import segment_positions
from research.models.token_ops import compact_tokens, scatter_tokens
from research.objectives import mlm_masking
from research.objectives.mlm import started
from research.objectives.mlm_masking import check_mlm, masked_fraction
from research.types import (
    Array,
    Key,
    LossOutput,
    Objective,
    Params,
    TokenizerInfo,
    Tokens,
)


def mae_lm(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.15,
    depth: int = 4,
    replace: tuple[float, float] = (1.0, 0.0),
) -> Objective:
    """MLM without [MASK] in the encoder (MAE-LM, Meng et al. 2024).

    The encoder reads the tokens that are left, each at its own position; a decoder puts
    the embedding of [MASK] where the others stood and predicts them. It has no dropout,
    and its own position table if the encoder has one.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of tokens that are predicted, of each row; single tokens, not words.
        depth: blocks of the decoder.
        replace: the shares of these that the encoder does not see, and that it sees
            replaced by a random token; the rest it sees as they are.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; shares that hide nothing from the encoder.
    """
    return _maskless(cfg, text, _Maskless(ratio, depth, replace, own_mask=False))


def mask_later(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.5,
    depth: int = 2,
    replace: tuple[float, float] = (0.8, 0.1),
) -> Objective:
    """Masks more and later (3ML, Liao et al. 2022, with self-attention only).

    As `mae_lm`, but half of the tokens are predicted, by a shallow decoder; what stands
    for a masked token there is a vector of its own, and the encoder sees random tokens
    as in BERT. With 40 % of the tokens gone the encoder's blocks cost that much less.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio, depth, replace: as in `mae_lm`.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mae_lm`.
    """
    return _maskless(cfg, text, _Maskless(ratio, depth, replace, own_mask=True))


class _Maskless(NamedTuple):
    """The arguments of `mae_lm`, and whether masks have a vector of their own."""

    ratio: float
    depth: int
    replace: tuple[float, float]
    own_mask: bool


def _maskless(cfg: EncoderConfig, text: TokenizerInfo, rule: _Maskless) -> Objective:
    """MAE-LM or 3ML."""
    check_mlm(cfg, text, ratio=rule.ratio)
    gone, random = rule.replace
    if gone <= 0 or random < 0 or gone + random > 1:
        raise ValueError(
            f"objective.replace is {tuple(rule.replace)}; it should be a share above 0 "
            "of tokens that the encoder does not see, and one that it sees replaced"
        )
    if rule.depth < 1:
        raise ValueError(f"objective.depth is {rule.depth}; it should be at least 1")

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        key, params = started(key, cfg, encoder)
        keys = jax.random.split(key, 3)
        decoder = dict(decoders.init_decoder(keys[0], cfg, rule.depth))
        if cfg.position == "learned":
            decoder["position"] = KERNEL_INIT(keys[1], (cfg.max_len, cfg.width))
        if rule.own_mask:
            decoder["mask"] = KERNEL_INIT(keys[2], (cfg.width,))
        return {**params, "decoder": decoder}, {}

    return Objective(init, partial(_maskless_loss, cfg, text, rule))


def _maskless_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    mask_key, hide_key, dropout_key = jax.random.split(key, 3)
    gone, random = rule.replace
    ratios = [rule.ratio * part for part in (gone, gone + random, 1)]
    dropped, changed, mask = mlm_masking.row_tokens(mask_key, batch, ratios)
    ids = mlm_masking.replace_masked(
        hide_key,
        batch.tokens.token_ids,
        changed & ~dropped,
        mask_id=text.mask_id,
        vocab=text.vocab_size,
        special=text.special,
        replace=(0.0, 1.0),
    )
    tokens = batch.tokens._replace(token_ids=ids)
    size = mlm_masking.kept_size(mask.shape[1], ratios[0])
    x = seen(
        cfg,
        params,
        text,
        tokens,
        mlm_masking.masked_positions(~dropped, size),
        dropout_key,
    )
    at, real = mlm_masking.masked_positions(mask, round(rule.ratio * mask.shape[1]))
    where = segment_positions(tokens.segment_ids)
    x = decoders.decode(
        params["encoder"], params["decoder"], x, where, cfg, query_positions=at
    )
    x = heads.apply_mlm_head(params["head"], x, cfg)
    part = PredictedTokens(x, token_ops.gather_tokens(batch.tokens.token_ids, at), real)
    total, [(mean, right)] = predictions(params, [part], [1.0])
    metrics = {
        "mlm": mean,
        "accuracy": right,
        "masked": masked_fraction(real, batch),
    }
    return LossOutput(total, metrics)


def seen(
    cfg: EncoderConfig,
    params: Params,
    text: TokenizerInfo,
    tokens: Tokens,
    kept: tuple[Array, Array],
    key: Key | None,
) -> Array:
    """The decoder's inputs, of an encoder that reads some of the tokens.

    Args:
        cfg: the encoder's shape.
        params: {"encoder", "decoder"}.
        text: the tokenizer's ids.
        tokens: rows [R, S].
        kept: [R, P] int32 places of the tokens that the encoder reads, in any order,
            and [R, P] bool, which of these count.
        key: dropout key of the encoder; None runs without.

    Returns:
        [R, S, D] the encoder's states, and between them what stands for a mask.
    """
    at, real = kept
    rows, where = compact_tokens(
        tokens, at, real & token_ops.gather_tokens(tokens.segment_ids > 0, at)
    )
    x, _ = models_encoder.apply(params["encoder"], rows, cfg, positions=where, key=key)
    fill = params["decoder"].get("mask")
    if fill is None:
        fill = params["encoder"]["embed"]["token"]["embedding"][text.mask_id]
    x = scatter_tokens(x, at, real, fill, tokens.token_ids.shape[1])
    if "position" in params["decoder"]:
        table = params["decoder"]["position"].astype(x.dtype)
        x += table[segment_positions(tokens.segment_ids).position_ids]
    return x
