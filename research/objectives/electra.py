"""ELECTRA: an encoder finds the tokens that a small generator made up."""

import dataclasses
from functools import partial
from math import gcd
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses import token_prediction
from research.losses.token_prediction import PredictedTokens, predictions
from research.models import encoder as models_encoder
from research.models import heads as models_heads
from research.models import layers, token_ops
from research.models.config import EncoderConfig
from research.models.layers import ACTIVATIONS
from research.models.linear import KERNEL_INIT
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.mlm_masking import check_mlm, mask_tokens, masked_fraction
from research.types import (
    VOCABULARY,
    Array,
    Key,
    LossOutput,
    Objective,
    Params,
    TokenizerInfo,
)


def electra(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.15,
    size: float = 0.25,
    weight: float = 50.0,
) -> Objective:
    """Replaced-token detection (ELECTRA, Clark et al. 2020).

    A narrow generator learns MLM; the encoder says of every token of the text, special
    ones too, whether it stands there or was drawn by the generator. A drawn token that
    is the right one counts as the text's. The embedding layer is shared, the rest of
    the generator its own; draws have no gradient.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of hidden tokens; single tokens, all [MASK] to the generator.
        size: the generator's width, heads and feed-forward layer over the encoder's.
        weight: of the encoder's loss beside the generator's.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; a generator of no width, or wider than the encoder.
    """
    check_mlm(cfg, text, ratio=ratio)
    if not 0 < size <= 1 or cfg.width * size < 1:
        raise ValueError(
            f"objective.size is {size}; it should be a part of the encoder's width "
            f"{cfg.width}, at most 1"
        )
    rule = _Generator(ratio, weight, narrow(cfg, size))

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        return _started(key, cfg, rule.shape, encoder), {}

    return Objective(init, partial(_electra_loss, cfg, text, rule))


class _Generator(NamedTuple):
    """The arguments of `electra`, with the generator's shape."""

    ratio: float
    weight: float
    shape: EncoderConfig


def narrow(cfg: EncoderConfig, size: float) -> EncoderConfig:
    """The shape of a generator: as deep, with fewer heads of the same size."""
    heads = max(1, round(cfg.num_heads * size))
    return dataclasses.replace(
        cfg,
        width=int(cfg.width * size),
        num_heads=heads,
        num_kv_heads=gcd(heads, cfg.num_kv_heads),
        mlp=max(1, int(cfg.mlp * size)),
    )


def _started(
    key: Key, cfg: EncoderConfig, shape: EncoderConfig, params: Params | None
) -> Params:
    """Random parameters, but for those of an encoder that is given."""
    keys = jax.random.split(key, 6)
    generator = dict(models_encoder.init(keys[1], shape))
    del generator["embed"]
    kernel = KERNEL_INIT(keys[2], (cfg.width, shape.width))
    generator["projection"] = {"kernel": kernel, "bias": jnp.zeros(shape.width)}
    head = models_heads.init_mlm_head(keys[3], cfg)
    dense = head["transform"]
    # Of the head's inputs there are as many as the generator is wide.
    head["transform"] = {**dense, "kernel": dense["kernel"][: shape.width]}
    detector = {
        "transform": {
            "kernel": KERNEL_INIT(keys[4], (cfg.width, cfg.width)),
            "bias": jnp.zeros(cfg.width),
        },
        "output": {"kernel": KERNEL_INIT(keys[5], (cfg.width,)), "bias": jnp.zeros(())},
    }
    params = models_encoder.init(keys[0], cfg) if params is None else params
    return {
        "encoder": params,
        "head": head,
        "generator": generator,
        "detector": detector,
    }


def _electra_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    mask_key, hide_key, generator_key, draw_key, dropout_key = jax.random.split(key, 5)
    mask = mlm_masking.tokens(mask_key, batch, rule.ratio)
    size = mlm_masking.buffer_size(mask.shape[1], rule.ratio, text.min_length)
    seen = mask_tokens(hide_key, batch, mask, size, text, (1.0, 0.0))
    tokens = batch.tokens._replace(token_ids=seen.token_ids)
    states = _generated(cfg, rule.shape, params, tokens, seen.positions, generator_key)
    part = PredictedTokens(states, seen.labels, seen.valid)
    total, [(loss, right)] = predictions(params, [part], [1.0])
    ids = sampled(
        draw_key,
        states.reshape(-1, cfg.width),
        params["encoder"]["embed"]["token"]["embedding"],
        params["head"]["bias"],
    )
    ids = replaced(
        batch.tokens.token_ids,
        seen.positions,
        seen.valid,
        ids.reshape(seen.positions.shape),
    )
    tokens = batch.tokens._replace(token_ids=ids)
    x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    scores = detected(params["detector"], x, cfg)
    found, metrics = detection(
        scores, ids != batch.tokens.token_ids, tokens.segment_ids > 0
    )
    metrics |= {"mlm": loss, "detection": found, "generator_accuracy": right}
    total += rule.weight * found
    metrics["masked"] = masked_fraction(seen.valid, batch)
    return LossOutput(total, metrics)


def _generated(cfg, shape, params, tokens, at, key):
    """The head's states [R, P, D] of a generator, at places [R, P] of the row."""
    embed_key, key = jax.random.split(key)
    where = segment_positions(tokens.segment_ids)
    x = layers.embed_tokens(
        params["encoder"], tokens.token_ids, where, cfg, key=embed_key
    )
    dense = params["generator"]["projection"]
    kernel, bias = (dense[name].astype(x.dtype) for name in ("kernel", "bias"))
    x = x @ kernel + bias[None, None]
    x, _ = models_encoder.apply(
        params["generator"], tokens, shape, input_embeddings=x, key=key
    )
    return models_heads.apply_mlm_head(
        params["head"], token_ops.gather_tokens(x, at), cfg
    )


@jax.named_scope(VOCABULARY)
def sampled(
    key: Key,
    x: Array,
    table: Array,
    bias: Array,
    *,
    logits: int | None = None,
) -> Array:
    """Tokens drawn from the softmax of the output layer; without a gradient.

    Args:
        key: PRNG key.
        x: [N, D] states.
        table: [V, D] token embeddings.
        bias: [V].
        logits: how many of them may stand in memory at a time; None for
            `reconstruction.most_logits`.

    Returns:
        [N] int32 token ids.
    """
    count = len(x)
    logits = logits or token_prediction.most_logits()
    chunks = min(count, -(-count * len(table) // logits))
    size = -(-count // chunks)
    x, table, bias = jax.lax.stop_gradient((x, table, bias))
    # Row i goes to chunk i % chunks: every chunk is spread over all devices.
    x = jnp.pad(x, ((0, chunks * size - count), (0, 0)))
    x = x.reshape(size, chunks, -1).swapaxes(0, 1)

    def chunk(parts):
        states, key = parts
        z = token_prediction.vocabulary_logits(states, table, bias)
        return jax.random.categorical(key, z).astype(jnp.int32)

    ids = jax.lax.map(chunk, (x, jax.random.split(key, chunks)))
    return ids.T.reshape(-1)[:count]


def replaced(ids: Array, at: Array, real: Array, drawn: Array) -> Array:
    """ids [R, S] with drawn ones [R, P] in their places `at`, where these are real."""
    row = jnp.arange(len(ids), dtype=jnp.int32)[:, None]
    at = jnp.where(real, at, ids.shape[1])
    return ids.at[row, at].set(drawn, mode="drop")


def detected(params: Params, x: Array, cfg: EncoderConfig) -> Array:
    """Logits that tokens are replaced: a dense layer, then one number of each.

    Args:
        params: {"transform", "output"}, each with a kernel and a bias.
        x: [R, S, D] states.
        cfg: the encoder's shape.

    Returns:
        [R, S] float32.
    """
    dense, out = params["transform"], params["output"]
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ dense["kernel"].astype(x.dtype) + dense["bias"].astype(x.dtype)[None]
    y = ACTIVATIONS[cfg.act](y) @ out["kernel"].astype(x.dtype)
    return y.astype(jnp.float32).reshape(x.shape[:-1]) + out["bias"][None, None]


def detection(scores: Array, fake: Array, real: Array) -> tuple[Array, dict]:
    """Binary cross-entropy over the tokens of the texts, and metrics.

    Args:
        scores: [R, S] float32 logits that a token is replaced.
        fake: [R, S] bool, whether it is.
        real: [R, S] bool, not padding.

    Returns:
        the mean over all real tokens [], and {"replaced": the share of tokens that are,
        "found": of these the share that is recognised}.
    """

    def share(mask, of):
        count = jnp.maximum(of.sum(dtype=jnp.float32), 1.0)
        return (mask & of).sum(dtype=jnp.float32) / count

    loss = jax.nn.softplus(jnp.where(fake, -scores, scores))
    count = jnp.maximum(real.sum(dtype=jnp.float32), 1.0)
    metrics = {"replaced": share(fake, real), "found": share(scores > 0, fake & real)}
    return jnp.where(real, loss, 0.0).sum() / count, metrics
