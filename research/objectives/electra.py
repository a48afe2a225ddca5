"""ELECTRA: an encoder detects the tokens that a small generator replaced."""

import dataclasses
from math import gcd

import chex
import jax
import jax.numpy as jnp

from research.losses import token_prediction
from research.losses.token_prediction import PredictedTokens
from research.models import embedding, encoder, heads, token_ops
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

    A narrow generator is trained by MLM; the encoder classifies every token of the
    text, including special tokens, as original or replaced by a sample of the
    generator. A sample that equals the original token counts as original. Generator and
    encoder share the embedding layer only; samples have no gradient.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of masked tokens; the generator reads all of them as [MASK].
        size: Ratio of the generator's width, number of heads and feed-forward width to
            the encoder's.
        weight: Weight of the detection loss; the generator's loss has weight 1.

    Returns:
        An Objective whose batches are PretrainingBatch.

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

        # MLM of the generator, which reads every masked token as [MASK]
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

        # [R, S] rows in which the generator's samples replace the masked tokens
        sampled_ids = sample_tokens(
            sample_key, states.reshape(-1, cfg.width), *mlm_output(params)
        )
        token_ids = replace_tokens(
            batch.tokens.token_ids,
            masked.positions,
            masked.valid,
            sampled_ids.reshape(masked.positions.shape),
        )

        # The encoder detects replaced tokens
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
    """The generator's shape: the encoder's depth, fewer heads of the same size."""
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
    """Random parameters, except for those of a given encoder."""
    keys = jax.random.split(key, 6)
    if encoder_params is None:
        encoder_params = encoder.init(keys[0], cfg)

    # Generator: a projection of the shared embeddings [D, d], then its own blocks
    generator = dict(encoder.init(keys[1], generator_cfg))
    del generator["embed"]
    kernel = KERNEL_INIT(keys[2], (cfg.width, generator_cfg.width))
    generator["projection"] = {
        "kernel": kernel,
        "bias": jnp.zeros(generator_cfg.width),
    }

    # Its MLM head, whose dense layer [d, D] has the generator's width d as input
    head = heads.init_mlm_head(keys[3], cfg)
    transform = head["transform"]
    kernel = transform["kernel"][: generator_cfg.width]
    head["transform"] = {**transform, "kernel": kernel}

    # Detector: a dense layer [D, D] and one output per token
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
    """The generator's states after its MLM head.

    Args:
        params: {"encoder", "generator", "head"}.
        tokens: Masked rows [R, S].
        positions: [R, P] int32 row positions of the tokens to predict.
        key: Dropout key.
        cfg: The encoder's shape.
        generator_cfg: The generator's shape.

    Returns:
        [R, P, D].
    """
    embed_key, key = jax.random.split(key)
    x = embedding.embed_tokens(  # [R, S, D]
        params["encoder"],
        tokens.token_ids,
        segment_positions(tokens.segment_ids),
        cfg,
        key=embed_key,
    )
    # [R, S, d] projected to the generator's width d, then through its blocks
    projection = params["generator"]["projection"]
    kernel, bias = (projection[name].astype(x.dtype) for name in ("kernel", "bias"))
    x = x @ kernel + bias[None, None]
    x, _ = encoder.apply(
        params["generator"], tokens, generator_cfg, input_embeddings=x, key=key
    )
    # [R, P, d] states of the masked tokens, and [R, P, D] after the head
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
    """Samples tokens from the softmax of the output layer, without a gradient.

    Args:
        key: PRNG key.
        x: [N, D] states.
        table: [V, D] token embeddings.
        bias: [V] bias of the logits.
        logits: Number of logits in memory at a time; None for
            `token_prediction.max_logits`.

    Returns:
        [N] int32 token ids.
    """
    chex.assert_rank([x, table, bias], [2, 2, 1])
    count = len(x)
    logits = logits or token_prediction.max_logits()
    # Number and size of chunks of rows
    num_chunks = min(count, -(-count * len(table) // logits))
    chunk_size = -(-count // num_chunks)
    x, table, bias = jax.lax.stop_gradient((x, table, bias))
    # Row i goes to chunk i % num_chunks, so that all devices hold rows of every chunk.
    x = jnp.pad(x, ((0, num_chunks * chunk_size - count), (0, 0)))
    x = x.reshape(chunk_size, num_chunks, -1).swapaxes(0, 1)

    def sample_chunk(chunk):
        states, key = chunk
        # [chunk_size, V] logits
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
    # Other positions move out of the row, where mode="drop" ignores them
    positions = jnp.where(valid, positions, token_ids.shape[1])
    return token_ids.at[row, positions].set(new_ids, mode="drop")


def detection_logits(params: Params, x: Array, cfg: EncoderConfig) -> Array:
    """Logits of replacement: a dense layer, then one number per token.

    Args:
        params: {"transform", "output"}, each with a kernel and a bias.
        x: [R, S, D] hidden states.
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
    """Binary cross-entropy of replaced-token detection, and its metrics.

    Args:
        logits: [R, S] float32 logits of a token being replaced.
        replaced: [R, S] bool, whether a token is replaced.
        valid: [R, S] bool, False for padding.

    Returns:
        The mean over all valid tokens, [] float32, and {"replaced": the share of tokens
        that are replaced, "found": the share of those that are detected}.
    """
    chex.assert_equal_shape([logits, replaced, valid])

    def fraction(mask, total_mask):
        count = jnp.maximum(total_mask.sum(dtype=jnp.float32), 1.0)
        return (mask & total_mask).sum(dtype=jnp.float32) / count

    # [R, S] -log sigmoid(logit) if replaced, else -log(1 - sigmoid(logit))
    losses = jax.nn.softplus(jnp.where(replaced, -logits, logits))
    count = jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)
    metrics = {
        "replaced": fraction(replaced, valid),
        "found": fraction(logits > 0, replaced & valid),
    }
    return jnp.where(valid, losses, 0.0).sum() / count, metrics
