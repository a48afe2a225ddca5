"""MLM whose encoder never reads [MASK]: MAE-LM and 3ML (masking more and later)."""

import chex
import jax
import jax.numpy as jnp

from research.losses.token_prediction import PredictedTokens
from research.models import decoders, encoder, heads, token_ops
from research.models.config import EncoderConfig
from research.models.layers import norm
from research.models.linear import KERNEL_INIT
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import init_params, mlm_losses
from research.objectives.mlm_masking import check_mlm, masked_fraction
from research.types import (
    Array,
    Key,
    LossOutput,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
    Tokens,
)


@reads_rows
def mae_lm(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.15,
    depth: int = 4,
    replace: tuple[float, float] = (1.0, 0.0),
) -> Objective:
    """MLM without [MASK] in the encoder (MAE-LM, Meng et al. 2024).

    The encoder reads only the unmasked tokens, each at its original position. A decoder
    inserts the embedding of [MASK] at the masked positions and predicts their tokens.
    It has no dropout, a norm of its inputs, and a position table of its own if the
    encoder has one.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of each row's tokens that are predicted, as single tokens rather
            than whole words.
        depth: Number of the decoder's blocks.
        replace: Shares of the predicted tokens that are dropped from the encoder's
            input and that are replaced by random tokens; the others are unchanged.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or `replace` drops no token.
    """
    return _maskless_encoder(
        cfg, tokenizer, ratio=ratio, depth=depth, replace=replace, mask_vector=False
    )


@reads_rows
def mask_later(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.5,
    depth: int = 2,
    replace: tuple[float, float] = (0.8, 0.1),
) -> Objective:
    """Masks more and later (3ML, Liao et al. 2022, with self-attention only).

    Like `mae_lm`, but half of the tokens are predicted, by a shallow decoder with a
    learned vector for masked positions, and the encoder reads some random tokens as in
    BERT. The encoder reads 40 % fewer tokens, so its blocks cost 40 % less.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: As in `mae_lm`.
        depth: As in `mae_lm`.
        replace: As in `mae_lm`.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mae_lm`.
    """
    return _maskless_encoder(
        cfg, tokenizer, ratio=ratio, depth=depth, replace=replace, mask_vector=True
    )


def _maskless_encoder(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float,
    depth: int,
    replace: tuple[float, float],
    mask_vector: bool,
) -> Objective:
    """MAE-LM, or 3ML with `mask_vector`: a learned vector for masked tokens."""
    check_mlm(cfg, tokenizer, ratio=ratio)
    _check_shares(replace)
    if depth < 1:
        raise ValueError(f"objective.depth is {depth}; it should be at least 1")

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, key = init_params(key, cfg, encoder_params)
        keys = jax.random.split(key, 3)
        decoder = dict(decoders.init_decoder(keys[0], cfg, depth))
        # The norm of the decoder's inputs, its position table and mask vector
        x = jnp.zeros((1, 1, cfg.width), cfg.compute_dtype)
        decoder["input_norm"] = norm(cfg, None).init(keys[0], x)["params"]
        if cfg.position == "learned":
            decoder["position"] = KERNEL_INIT(keys[1], (cfg.max_len, cfg.width))
        if mask_vector:
            decoder["mask"] = KERNEL_INIT(keys[2], (cfg.width,))
        return {**params, "decoder": decoder}, {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        mask_key, replace_key, dropout_key = jax.random.split(key, 3)

        # Nested masks [R, S]: dropped, dropped or replaced, and all predicted tokens
        drop_share, random_share = replace
        shares = (drop_share, drop_share + random_share, 1)
        ratios = [ratio * share for share in shares]
        dropped, changed, predicted = mlm_masking.mask_row_tokens(
            mask_key, batch, ratios
        )
        token_ids = mlm_masking.replace_masked(
            replace_key,
            batch.tokens.token_ids,
            changed & ~dropped,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=tokenizer.special_ids,
            replace=(0.0, 1.0),
        )

        # [R, S, D] the encoder's states, with mask vectors at the dropped positions
        tokens = batch.tokens._replace(token_ids=token_ids)
        length = dropped.shape[1]
        size = mlm_masking.unmasked_buffer_size(length, ratios[0])
        unmasked = mlm_masking.masked_positions(~dropped, size)
        x = decoder_inputs(params, tokens, unmasked, dropout_key, cfg, tokenizer)

        # [R, P, D] the decoder's states of the predicted tokens
        positions, valid = mlm_masking.masked_positions(
            predicted, round(ratio * length)
        )
        x = decoders.decode(
            params["encoder"],
            params["decoder"],
            x,
            segment_positions(tokens.segment_ids),
            cfg,
            query_positions=positions,
        )
        # Cross-entropy of the predicted tokens
        x = heads.apply_mlm_head(params["head"], x, cfg)

        labels = token_ops.gather_tokens(batch.tokens.token_ids, positions)
        part = PredictedTokens(x, labels, valid)
        total, [means] = mlm_losses(params, [part], [1.0])
        total += position_penalty(key, params["encoder"], cfg)
        metrics = {
            "mlm": means.loss,
            "accuracy": means.accuracy,
            "masked": masked_fraction(valid, batch),
        }
        return LossOutput(total, metrics)

    return Objective(init, loss)


def _check_shares(replace: tuple[float, float]) -> None:
    """Raises ValueError if no token is dropped, or the shares are invalid."""
    drop_share, random_share = replace
    if drop_share <= 0 or random_share < 0 or drop_share + random_share > 1:
        raise ValueError(
            f"objective.replace is {tuple(replace)}; it should be a share above 0 of "
            "tokens that the encoder does not read, and one that it reads replaced"
        )


def decoder_inputs(
    params: Params,
    tokens: Tokens,
    unmasked: tuple[Array, Array],
    key: Key | None,
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
) -> Array:
    """The norm of the encoder's states of unmasked tokens and mask vectors elsewhere.

    Without the norm, mask vectors would be far smaller than states, and almost without
    an effect of their positions on attention.

    Args:
        params: {"encoder", "decoder"}.
        tokens: Rows [R, S].
        unmasked: [R, P] int32 row positions of the tokens that the encoder reads, in
            any order, and [R, P] bool, whether an entry is valid.
        key: Dropout key of the encoder; None runs without.
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.

    Returns:
        [R, S, D].
    """
    positions, valid = unmasked
    chex.assert_equal_shape([positions, valid])

    # [R, P, D] states of the unmasked tokens, computed with their original positions
    valid &= token_ops.gather_tokens(tokens.segment_ids > 0, positions)
    rows, row_positions = token_ops.compact_tokens(tokens, positions, valid)
    x, _ = encoder.apply(params["encoder"], rows, cfg, positions=row_positions, key=key)

    # [R, S, D] states at their row positions, the mask vector [D] everywhere else
    mask_vector = params["decoder"].get("mask")
    if mask_vector is None:
        table = params["encoder"]["embed"]["token"]["embedding"]
        mask_vector = table[tokenizer.mask_id]
    length = tokens.token_ids.shape[1]
    x = token_ops.scatter_tokens(x, unmasked[0], unmasked[1], mask_vector, length)
    # The decoder's own position embeddings
    if "position" in params["decoder"]:
        table = params["decoder"]["position"].astype(x.dtype)
        x += table[segment_positions(tokens.segment_ids).position_ids]
    return norm(cfg, None).apply({"params": params["decoder"]["input_norm"]}, x)
