"""The scores of attention with every kind of position, and their softmax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.attention.masks import in_window, visible
from research.models.config import EncoderConfig
from research.models.positions.bias import RELATIVE
from research.models.positions.query_scale import logit_scale
from research.models.positions.relative_rope import Relation
from research.models.positions.segment_positions import Positions
from research.types import Array, Key, Params


class Scored(NamedTuple):
    """The queries, keys and values of rows, and what else has a gradient.

    Attributes:
        relative: the parameters of the attention bias; None without.
        query: [B, S, H, E] for each branch of the relation, rotated and scaled.
        key: [B, S, KV, E] for each branch, rotated.
        v: [B, S, KV, D/H] values.
    """

    relative: Params | None
    query: tuple[Array, ...]
    key: tuple[Array, ...]
    v: Array


class Setting(NamedTuple):
    """What attention reads that has no gradient.

    Attributes:
        places: where the tokens stand, [B, S].
        dropout_key: None for no dropout.
        local: [] bool, whether this is a local block; None where no block is.
    """

    places: Positions
    dropout_key: Key | None
    local: Array | None


class AttentionMasks(NamedTuple):
    """What scores depend on besides queries and keys; it is the same in every block.

    Attributes:
        mask: [B, q, k] bool, which token may see which in a global block.
        near: [B, q, k] bool, which of these also a local block sees; None without.
        bias: [1 or B, H, q, k] float32, added to the scores; None without.
        holds: [B, q, k] bool for each branch after the first, the pairs that it scores.
    """

    mask: Array
    sliding_window_mask: Array | None
    bias: Array | None
    branch_masks: tuple[Array, ...]


def make_attention_masks(
    cfg: EncoderConfig,
    relation: Relation,
    relative: Params | None,
    query: Positions,
    key: Positions,
    *,
    aligned: bool = True,
) -> AttentionMasks:
    """The terms of the scores of queries [B, q] with keys [B, k].

    Args:
        cfg: the encoder's shape.
        relation: of queries and keys.
        relative: the parameters of the attention bias; None without.
        query, key: places of the tokens.
        aligned: whether the i-th tokens of all rows stand at the same place of theirs,
            so that all rows share a bias.
    """
    mask = visible(cfg, query, key)
    rows, columns = query.position_ids[:, :, None], key.position_ids[:, None, :]
    if relation.visible is not None:
        mask &= relation.visible(rows, columns)
    bias = None
    if cfg.position_bias in RELATIVE:
        # Inside a text, places in the row differ as positions do.
        some = slice(1) if aligned else slice(None)
        distance = key.row_positions[some, None, :] - query.row_positions[some, :, None]
        bias = RELATIVE[cfg.position_bias].bias(relative or {}, cfg, distance)
        bias *= logit_scale(cfg)
    return AttentionMasks(
        mask,
        in_window(cfg.window, query, key) if cfg.sliding_window_layers else None,
        bias,
        tuple(branch.holds(rows, columns) for branch in relation.branches[1:]),
    )


def attention_logits(
    cfg: EncoderConfig,
    query: tuple[Array, ...],
    key: tuple[Array, ...],
    terms: AttentionMasks,
    local: Array | None,
) -> Array:
    """Scores [B, H, q, k] float32, the lowest number where a token is not seen.

    Args:
        cfg: the encoder's shape.
        query: [B, q, H, D/H] for each branch.
        key: [B, k, KV, D/H] for each branch.
        terms: of these queries and keys.
        local: [] bool, whether this is a local block; None where no block is.
    """
    x = products(query[0], key[0])
    for holds, q, k in zip(terms.branch_masks, query[1:], key[1:], strict=True):
        if local is not None:
            holds &= ~local
        x = jnp.where(holds[:, None], products(q, k), x)
    if terms.bias is not None:
        x += terms.bias
    if cfg.attn_logit_softcap:
        cap = cfg.attn_logit_softcap * logit_scale(cfg)
        x = cap * jnp.tanh(x / cap)
    mask = terms.mask
    if local is not None:
        mask &= terms.sliding_window_mask | ~local
    return jnp.where(mask[:, None], x, jnp.finfo(jnp.float32).min)


def softmax_weighted_sum(
    scores: Array, v: Array, rate: float, key: Key | None
) -> Array:
    """Softmax of scores that stand whole in memory, times the values.

    The sum of the softmax divides the [S, D/H] result instead of the [S, S] weights.

    Args:
        scores: [B, H, q, k] float32.
        v: [B, k, KV, D/H] values.
        rate: dropout of the weights, if there is a key.
        key: dropout key or None.

    Returns:
        [B, q, H, D/H] in the type of v.
    """
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = dropout(weights, rate, key).astype(v.dtype)
    return (weighted(weights, v) / total).astype(v.dtype).transpose(0, 2, 1, 3)


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Zeroes entries with probability `rate`, scales the others; identity without key.

    Half-words of a flat draw decide: on CPU 5 times faster than `jax.random.bernoulli`
    of the same shape, which was a quarter of a training step. The rate is exact to
    2^-17.
    """
    if key is None or rate == 0:
        return x
    words = jax.random.bits(key, (-(-x.size // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
    dropped = round(rate * 2**16)
    keep = halves[: x.size].reshape(x.shape) >= dropped
    scale = jnp.asarray(2**16 / (2**16 - dropped), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros_like(x))


def products(q: Array, k: Array) -> Array:
    """[B, q, H, E] and [B, k, KV, E] -> [B, H, q, k] float32.

    Heads come before positions and keys are laid out transposed, which is the fastest
    on CPU; the queries that share a key head are rows of one product.
    """
    b, s, h, e = q.shape
    kv = k.shape[2]
    q = q.transpose(0, 2, 1, 3).reshape(b, kv, h // kv * s, e)
    x = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    return x.reshape(b, h, s, -1)


def weighted(weights: Array, v: Array) -> Array:
    """[B, H, q, k] and [B, k, KV, E] -> [B, H, q, E] float32."""
    b, h, s, _ = weights.shape
    kv = v.shape[2]
    weights = weights.reshape(b, kv, h // kv * s, -1)
    y = jnp.matmul(weights, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    return y.reshape(b, h, s, -1)
