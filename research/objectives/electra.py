"""ELECTRA: an encoder detects the tokens that a small generator replaced."""

import dataclasses
from math import gcd

import chex
import jax
import jax.numpy as jnp

from research.losses import token_prediction
from research.losses.token_prediction import PredictedTokens
from research.models import encoder, heads, layers, token_ops
from research.models.config import EncoderConfig
from research.models.layers import ACTIVATIONS
from research.models.linear import KERNEL_INIT
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import (
    masked_inputs,
    mlm_losses,
    mlm_output,
)
from research.objectives.mlm_masking import check_mlm, mask_tokens, masked_fraction
from research.types import (
    VOCABULARY,
    Array,
    Key,
    LossOutput,
    Metrics,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
    Tokens,
)


@reads_rows
def electra(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.15,
    size: float = 0.25,
    weight: float = 50.0,
) -> Objective:
    """Replaced-token detection (ELECTRA, Clark et al. 2020).

    A narrow generator learns MLM; the encoder classifies every token of the text,
    special ones too, as original or sampled by the generator. A sampled token that
    equals the original counts as original. The embedding layer is shared, the
    generator's other parameters are its own; samples have no gradient.

    Args:
        cfg: The encoder's shape.
        tokenizer: The tokenizer's ids.
        ratio: Share of masked tokens; single tokens, all [MASK] to the generator.
        size: The generator's width, heads and feed-forward layer relative to the
            encoder's.
        weight: Weight of the detection loss beside the generator's.

    Returns:
        An Objective of batches of type PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or the generator has no width, or is wider than the
            encoder.
    """
    check_mlm(cfg, tokenizer, ratio=ratio)
    if not 0 < size <= 1 or cfg.width * size < 1:
        raise ValueError(
            f"objective.size is {size}; it should be a part of the encoder's width "
            f"{cfg.width}, at most 1"
        )
    generator_cfg = narrow_config(cfg, size)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        return _init_electra(key, cfg, generator_cfg, encoder_params), {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        keys = jax.random.split(key, 5)
        mask_key, replace_key, generator_key, sample_key, dropout_key = keys

        # the generator's MLM, all masked tokens being [MASK]
        mask = mlm_masking.mask_single_tokens(mask_key, batch, ratio)  # [R, S]
        buffer = mlm_masking.buffer_size(mask.shape[1], ratio, tokenizer.min_length)
        masked = mask_tokens(replace_key, batch, mask, buffer, tokenizer, (1.0, 0.0))
        states = generator_states(  # [R, P, D]
            params,
            masked_inputs(batch, masked),
            masked.positions,
            generator_key,
            cfg,
            generator_cfg,
        )
        part = PredictedTokens(states, masked.labels, masked.valid)
        mlm_loss, [means] = mlm_losses(params, [part], [1.0])

        # [R, S] rows with tokens that the generator sampled
        sampled_ids = sample_tokens(
            sample_key, states.reshape(-1, cfg.width), *mlm_output(params)
        )
        token_ids = replace_tokens(
            batch.tokens.token_ids,
            masked.positions,
            masked.valid,
            sampled_ids.reshape(masked.positions.shape),
        )

        # detection by the encoder
        tokens = batch.tokens._replace(token_ids=token_ids)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
        logits = detection_logits(params["detector"], x, cfg)  # [R, S]
        replaced = token_ids != batch.tokens.token_ids
        detection, metrics = detection_loss(logits, replaced, tokens.segment_ids > 0)
        total = mlm_loss + weight * detection
        total += position_penalty(key, params["encoder"], cfg)
        metrics = {
            **metrics,
            "mlm": means.loss,
            "detection": detection,
            "generator_accuracy": means.accuracy,
            "masked": masked_fraction(masked.valid, batch),
        }
        return LossOutput(total, metrics)

    return Objective(init, loss)


def narrow_config(cfg: EncoderConfig, size: float) -> EncoderConfig:
    """The shape of a generator: as deep, with fewer heads of the same size."""
    num_heads = max(1, round(cfg.num_heads * size))
    return dataclasses.replace(
        cfg,
        width=int(cfg.width * size),
        num_heads=num_heads,
        num_kv_heads=gcd(num_heads, cfg.num_kv_heads),
        mlp=max(1, int(cfg.mlp * size)),
    )


def _init_electra(
    key: Key,
    cfg: EncoderConfig,
    generator_cfg: EncoderConfig,
    encoder_params: Params | None,
) -> Params:
    """Random parameters, but for those of an encoder that is given."""
    keys = jax.random.split(key, 6)
    if encoder_params is None:
        encoder_params = encoder.init(keys[0], cfg)

    # the generator: its own blocks behind a projection of the shared embeddings
    generator = dict(encoder.init(keys[1], generator_cfg))
    del generator["embed"]
    kernel = KERNEL_INIT(keys[2], (cfg.width, generator_cfg.width))
    generator["projection"] = {
        "kernel": kernel,
        "bias": jnp.zeros(generator_cfg.width),
    }

    # its head, which has as many inputs as the generator is wide
    head = heads.init_mlm_head(keys[3], cfg)
    transform = head["transform"]
    kernel = transform["kernel"][: generator_cfg.width]
    head["transform"] = {**transform, "kernel": kernel}

    detector = {
        "transform": {
            "kernel": KERNEL_INIT(keys[4], (cfg.width, cfg.width)),
            "bias": jnp.zeros(cfg.width),
        },
        "output": {"kernel": KERNEL_INIT(keys[5], (cfg.width,)), "bias": jnp.zeros(())},
    }
    return {
        "encoder": encoder_params,
        "head": head,
        "generator": generator,
        "detector": detector,
    }


def generator_states(
    params: Params,
    tokens: Tokens,
    positions: Array,
    key: Key,
    cfg: EncoderConfig,
    generator_cfg: EncoderConfig,
) -> Array:
    """The head's states of the generator.

    Args:
        params: {"encoder", "generator", "head"}.
        tokens: Masked rows [R, S].
        positions: [R, P] int32 positions in the row of the tokens to predict.
        key: Dropout key.
        cfg: The encoder's shape.
        generator_cfg: The generator's shape.

    Returns:
        [R, P, D].
    """
    embed_key, key = jax.random.split(key)
    x = layers.embed_tokens(  # [R, S, D]
        params["encoder"],
        tokens.token_ids,
        segment_positions(tokens.segment_ids),
        cfg,
        key=embed_key,
    )
    # [R, S, the generator's width]
    projection = params["generator"]["projection"]
    kernel, bias = (projection[name].astype(x.dtype) for name in ("kernel", "bias"))
    x = x @ kernel + bias[None, None]
    x, _ = encoder.apply(
        params["generator"], tokens, generator_cfg, input_embeddings=x, key=key
    )
    x = token_ops.gather_tokens(x, positions)
    return heads.apply_mlm_head(params["head"], x, cfg)


@jax.named_scope(VOCABULARY)
def sample_tokens(
    key: Key,
    x: Array,
    table: Array,
    bias: Array,
    *,
    logits: int | None = None,
) -> Array:
    """Samples tokens from the softmax of the output layer; without a gradient.

    Args:
        key: PRNG key.
        x: [N, D] states.
        table: [V, D] token embeddings.
        bias: [V].
        logits: Number of logits in memory at a time; None for
            `token_prediction.max_logits`.

    Returns:
        [N] int32 token ids.
    """
    chex.assert_rank([x, table, bias], [2, 2, 1])
    count = len(x)
    logits = logits or token_prediction.max_logits()
    num_chunks = min(count, -(-count * len(table) // logits))
    chunk_size = -(-count // num_chunks)
    x, table, bias = jax.lax.stop_gradient((x, table, bias))
    # Row i goes to chunk i % num_chunks: every chunk is spread over all devices.
    x = jnp.pad(x, ((0, num_chunks * chunk_size - count), (0, 0)))
    x = x.reshape(chunk_size, num_chunks, -1).swapaxes(0, 1)

    def sample_chunk(chunk):
        states, key = chunk
        z = token_prediction.vocabulary_logits(states, table, bias)
        return jax.random.categorical(key, z).astype(jnp.int32)

    token_ids = jax.lax.map(sample_chunk, (x, jax.random.split(key, num_chunks)))
    return token_ids.T.reshape(-1)[:count]


def replace_tokens(
    token_ids: Array, positions: Array, valid: Array, new_ids: Array
) -> Array:
    """Puts new ids [R, P] at valid positions [R, P] of the rows [R, S]."""
    chex.assert_equal_shape([positions, valid, new_ids])
    row = jnp.arange(len(token_ids), dtype=jnp.int32)[:, None]
    positions = jnp.where(valid, positions, token_ids.shape[1])
    return token_ids.at[row, positions].set(new_ids, mode="drop")


def detection_logits(params: Params, x: Array, cfg: EncoderConfig) -> Array:
    """Logits that tokens are replaced: a dense layer, then one number per token.

    Args:
        params: {"transform", "output"}, each with a kernel and a bias.
        x: [R, S, D] states.
        cfg: The encoder's shape.

    Returns:
        [R, S] float32.
    """
    transform, output = params["transform"], params["output"]
    y = x.reshape(-1, x.shape[-1]) @ transform["kernel"].astype(x.dtype)  # [R*S, D]
    y += transform["bias"].astype(x.dtype)[None]
    y = ACTIVATIONS[cfg.act](y) @ output["kernel"].astype(x.dtype)  # [R*S]
    y = y.astype(jnp.float32).reshape(x.shape[:-1])
    return y + output["bias"][None, None]


def detection_loss(
    logits: Array, replaced: Array, valid: Array
) -> tuple[Array, Metrics]:
    """Binary cross-entropy over the tokens of the texts, and metrics.

    Args:
        logits: [R, S] float32, that a token is replaced.
        replaced: [R, S] bool, whether it is.
        valid: [R, S] bool, not padding.

    Returns:
        The mean over all valid tokens [], and {"replaced": the share of tokens that
        are replaced, "found": the share of these that is recognized}.
    """
    chex.assert_equal_shape([logits, replaced, valid])

    def fraction(mask, total_mask):
        count = jnp.maximum(total_mask.sum(dtype=jnp.float32), 1.0)
        return (mask & total_mask).sum(dtype=jnp.float32) / count

    losses = jax.nn.softplus(jnp.where(replaced, -logits, logits))
    count = jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)
    metrics = {
        "replaced": fraction(replaced, valid),
        "found": fraction(logits > 0, replaced & valid),
    }
    return jnp.where(valid, losses, 0.0).sum() / count, metrics
