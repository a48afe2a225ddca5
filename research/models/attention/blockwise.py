"""FlashAttention in plain JAX: exact attention, and its gradient, in O(S) memory.

It covers what no fused kernel supports: CPUs, attention biases, several RoPE branches,
anchor tokens, dropout of attention weights (Dao et al. 2022; the online softmax is from
Milakov & Gimelshein 2018, its first form in JAX from Rabe & Staats 2021).

Forward. Queries are split into n blocks, keys and values into m. For each block of
queries the blocks of keys are scanned, with a carry for each query:

    max  [B, H, q, 1]  the largest logit so far
    sum  [B, H, q, 1]  the sum of exp(logit - max) so far
    acc  [B, H, q, E]  the sum of exp(logit - max) * value so far

A block that raises max to max' multiplies sum and acc by exp(max - max'). In the end
the output is O = acc / sum. The backward pass needs only O and L = max + log(sum), the
logsumexp of a query's logits.

Backward. With logits S and the cotangent dO, for every pair of blocks

    P = exp(S - L)          the attention weights, recomputed
    D = rowsum(dO * O)      [B, H, q, 1], once for each query
    dS = P * (dO V^T - D)   dV = P^T dO

and dQ, dK and the gradient of the bias follow from dS through the computation of the
logits: RoPE branches, bias, softcap, masks. Instead of writing that by hand, the scalar

    sum(P * (dO V^T - D))   with constant dO, D and L

is differentiated by JAX: its derivative by S is dS, and by V it is dV. Dropout scales
the entries of dO V^T by the same factors as those of P in the forward pass, because its
key is derived from the indices of the two blocks.

Pairs of blocks in which no query attends to any key are skipped by `lax.cond`: causal
attention takes half of the time, and a packed row only the time of its texts. A
sliding-window block (`_window_attention`) costs O(S * window): each block of queries
attends to the keys within its window, without an online softmax.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models.attention.blocks import (
    attending_blocks,
    join_blocks,
    pad_tokens,
    split_blocks,
)
from research.models.attention.dot_product import (
    attention_logits,
    head_products,
    make_attention_masks,
    softmax_weighted_sum,
    sum_values,
)
from research.models.attention.inputs import AttentionInputs
from research.models.config import EncoderConfig
from research.models.dropout import dropout
from research.types import Array, Key

# Number of queries and keys in a block. At 4,096 tokens and 12 heads 512 x 256 took
# 226 ms, 128 x 256 548 ms (XLA uses both cores for large products only), and blocks of
# all keys 284 ms.
BLOCK = (512, 256)
# Largest number of logits in memory at once: more do not fit the cache.
MAX_LOGITS = 2**22
# Largest number of queries in a block of sliding-window attention: smaller blocks waste
# less on keys outside the windows.
WINDOW_BLOCK = 128
# Initial running max: above the logits of masked pairs and below all others, so that
# masked pairs have weight 0 even if they come first.
INITIAL_MAX = float(jnp.finfo(jnp.float32).min) / 2


def blockwise_attention(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
    key: Key | None = None,
    *,
    block: tuple[int, int] | None = None,
) -> Array:
    """Self-attention of packed rows in O(S) memory, also for the gradient.

    Args:
        cfg: The encoder's shape.
        q: [B, S, H, E] queries, scaled and rotated, one array per RoPE branch.
        k: [B, S, KV, E] keys, rotated, one array per RoPE branch.
        v: [B, S, KV, D/H] values.
        attn: The inputs that all blocks share; only positions and bias are used.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.
        key: Dropout key of the attention weights; None runs without dropout.
        block: Number of queries and of keys in a block; None chooses it.

    Returns:
        [B, S, H, D/H] in the type of v; zero where a token attends to nothing.
    """
    length = v.shape[1]
    chex.assert_equal_shape_prefix((*q, *k, v, *attn.positions), 2)
    block = block or _choose_block(q[0].shape)
    # Positions of the tokens as queries and as keys
    positions = attn.positions, attn.key_positions or attn.positions
    arguments = (q, k, v, attn.bias_params, positions, key)
    window_rows = min(block[0], WINDOW_BLOCK)
    # Windows that cover the row need no blocks of their own
    if is_local is None or window_rows + 2 * cfg.window >= length:
        return _full_attention(cfg, block, *arguments, is_local)
    return jax.lax.cond(
        is_local,
        lambda: _window_attention(cfg, block[0], *arguments),
        lambda: _full_attention(cfg, block, *arguments, None),
    )


def _choose_block(q_shape: tuple[int, ...]) -> tuple[int, int]:
    """Numbers of queries and keys in a block, for q [B, S, H, E]; few if B is large."""
    rows, columns = BLOCK
    while q_shape[0] * q_shape[2] * rows * columns > MAX_LOGITS and rows > 128:
        rows, columns = columns, rows // 2
    return _equal_blocks(q_shape[1], rows), _equal_blocks(q_shape[1], columns)


def _equal_blocks(length: int, block: int) -> int:
    """Size of equal blocks, a multiple of 8, so that the last one is not shorter."""
    count = -(-length // block)
    return -(-length // (8 * count)) * 8


def _window_attention(cfg, rows, q, k, v, bias_params, positions, key):
    """Sliding-window attention: blocks of queries, each with the keys in its window.

    Several blocks, with up to `rows` queries together, are computed at a time.

    Returns:
        [B, S, H, D/H] in the type of v.
    """
    batch, length = v.shape[:2]
    block = min(rows, WINDOW_BLOCK)
    group = max(1, rows // block)
    count = -(-length // (block * group)) * group  # n blocks of queries
    block_keys = block + 2 * cfg.window

    def cut_blocks(tree, before, size):
        """Cuts [B, S, ...] into overlapping [n / group, B * group, size, ...]."""
        tree = pad_tokens(tree, before, block * count + before - length)
        indices = np.add.outer(block * np.arange(count), np.arange(size))

        def cut_array(x):
            x = x[:, indices].reshape(batch, -1, group, size, *x.shape[2:])
            return jnp.moveaxis(x, 1, 0).reshape(-1, batch * group, *x.shape[3:])

        return jax.tree.map(cut_array, tree)

    @jax.checkpoint
    def attend_group(number, q, q_positions, k, v, k_positions):
        # [B * group, H, block, block_keys] logits
        logits = _block_logits(
            cfg, q, k, bias_params, q_positions, k_positions, jnp.bool_(True)
        )
        return softmax_weighted_sum(
            logits, v, cfg.attention_dropout_rate, _fold_in(key, number)
        )

    # [n / group, B * group, block or block_keys, ...]
    numbers = jnp.arange(count // group)
    q_blocks = cut_blocks((q, positions[0]), 0, block)
    kv_blocks = cut_blocks((k, v, positions[1]), cfg.window, block_keys)
    y = jax.lax.map(
        lambda blocks: attend_group(*blocks), (numbers, *q_blocks, *kv_blocks)
    )
    # [n / group, B * group, block, H, E] -> [B, S, H, E]
    y = jnp.moveaxis(y.reshape(-1, batch, group * block, *y.shape[3:]), 0, 1)
    return y.reshape(batch, -1, *y.shape[3:])[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _full_attention(cfg, block, q, k, v, bias_params, positions, key, is_local):
    """Online-softmax attention: [B, S, H, D/H] in the type of v."""
    return _forward(cfg, block, q, k, v, bias_params, positions, key, is_local)[0]


def _forward(cfg, block, q, k, v, bias_params, positions, key, is_local):
    """Returns the output [B, S, H, D/H] and the residuals of the backward pass."""
    q_blocks = split_blocks((q, positions[0]), block[0])  # [n, B, rows, ...]
    kv_blocks = split_blocks((k, v, positions[1]), block[1])  # [m, B, columns, ...]
    attends = attending_blocks(cfg, q_blocks[1], kv_blocks[2], is_local)  # [n, m]
    columns = jnp.arange(attends.shape[1])

    def attend_query_block(xs):
        row, attends_row, q_block, q_positions = xs

        def add_kv_block(carry, column, k_block, v_block, k_positions):
            running_max, running_sum, acc = carry
            # [B, H, rows, columns] logits of the two blocks
            logits = _block_logits(
                cfg, q_block, k_block, bias_params, q_positions, k_positions, is_local
            )
            new_max = jnp.maximum(running_max, logits.max(-1, keepdims=True))
            weights, decay = jnp.exp(logits - new_max), jnp.exp(running_max - new_max)
            running_sum = running_sum * decay + weights.sum(-1, keepdims=True)
            # Dropout comes after the softmax: the sum keeps the dropped weights.
            block_key = _fold_in(key, row, column)
            weights = dropout(weights, cfg.attention_dropout_rate, block_key).astype(
                v.dtype
            )
            return new_max, running_sum, acc * decay + sum_values(weights, v_block)

        def step(carry, xs):
            attends_block, *kv = xs
            carry = jax.lax.cond(
                attends_block, add_kv_block, lambda carry, *_: carry, carry, *kv
            )
            return carry, None

        batch, size, heads = q_block[0].shape[:3]
        zero = jnp.zeros((batch, heads, size, 1))
        carry = (zero + INITIAL_MAX, zero, jnp.repeat(zero, v.shape[-1], axis=-1))
        (running_max, running_sum, acc), _ = jax.lax.scan(
            step, carry, (attends_row, columns, *kv_blocks)
        )
        # A query without any key (padding) has the output 0
        running_sum = jnp.where(running_sum > 0, running_sum, 1)
        out = (acc / running_sum).astype(v.dtype).transpose(0, 2, 1, 3)
        return out, running_max + jnp.log(
            running_sum
        )  # [B, rows, H, E], [B, H, rows, 1]

    rows = jnp.arange(len(attends))
    out, logsumexp = jax.lax.map(attend_query_block, (rows, attends, *q_blocks))
    out = join_blocks(out, v.shape[1])
    residuals = (q, k, v, bias_params, positions, key, is_local, out, logsumexp)
    return out, residuals


def _backward(cfg, block, residuals, d_out):
    """Cotangents of queries, keys, values and parameters of the bias."""
    q, k, v, bias_params, positions, key, is_local, out, logsumexp = residuals
    # [B, S, H, 1] D = rowsum(dO * O)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    # [n, B, rows, ...]
    q_blocks = split_blocks((q, positions[0], d_out, delta), block[0])
    kv_blocks = split_blocks((k, v, positions[1]), block[1])  # [m, B, columns, ...]
    attends = attending_blocks(cfg, q_blocks[1], kv_blocks[2], is_local)  # [n, m]
    columns = jnp.arange(attends.shape[1])

    def add_query_block(carry, xs):
        """Accumulates cotangents of bias, keys and values; returns that of q_block."""
        d_bias, d_kv_blocks = carry
        row, attends_row, q_block, q_positions, d_out_block, delta_block, lse = xs

        def surrogate(bias_params, q_block, k_block, v_block, k_positions, column):
            """sum(P * (dO V^T - D)), whose derivatives are those of this block."""
            # [B, H, rows, columns] dO V^T - D
            inner = head_products(d_out_block, v_block)
            inner = dropout(
                inner, cfg.attention_dropout_rate, _fold_in(key, row, column)
            )
            inner -= delta_block.transpose(0, 2, 1, 3)
            # [B, H, rows, columns] P = exp(S - L)
            logits = _block_logits(
                cfg, q_block, k_block, bias_params, q_positions, k_positions, is_local
            )
            return (jnp.exp(logits - lse) * inner).sum()

        def add_kv_block(sums, d_kv, column, k_block, v_block, k_positions):
            gradient = jax.grad(surrogate, argnums=(0, 1, 2, 3))
            d_bias, d_q, d_k, d_v = gradient(
                bias_params, q_block, k_block, v_block, k_positions, column
            )
            return _add(sums, (d_bias, d_q)), _add(d_kv, (d_k, d_v))

        def step(sums, xs):
            attends_block, d_kv, *kv = xs
            return jax.lax.cond(
                attends_block,
                add_kv_block,
                lambda sums, d_kv, *_: (sums, d_kv),
                *(sums, d_kv, *kv),
            )

        (d_bias, d_q_block), d_kv_blocks = jax.lax.scan(
            step,
            (d_bias, _zeros_like(q_block)),
            (attends_row, d_kv_blocks, columns, *kv_blocks),
        )
        return (d_bias, d_kv_blocks), d_q_block

    # Scan the blocks of queries, then cast cotangents to the types of the inputs
    carry = (_zeros_like(bias_params), _zeros_like(kv_blocks[:2]))
    xs = (jnp.arange(len(attends)), attends, *q_blocks, logsumexp)
    (d_bias, (d_k, d_v)), d_q = jax.lax.scan(add_query_block, carry, xs)
    d_q, d_k, d_v = jax.tree.map(lambda x: join_blocks(x, v.shape[1]), (d_q, d_k, d_v))
    cotangents = jax.tree.map(
        lambda x, like: x.astype(like.dtype),
        (d_q, d_k, d_v, d_bias),
        (q, k, v, bias_params),
    )
    return (*cotangents, None, None, None)


_full_attention.defvjp(_forward, _backward)


def _block_logits(cfg, q, k, bias_params, q_positions, k_positions, is_local):
    """Logits [B, H, q, k] of a block of queries with a block of keys."""
    masks = make_attention_masks(cfg, bias_params, q_positions, k_positions)
    return attention_logits(cfg, q, k, masks, is_local)


def _fold_in(key: Key | None, *numbers: Array) -> Key | None:
    """Derives the dropout key of a block, or of a pair of blocks, by its indices."""
    for number in numbers:
        key = None if key is None else jax.random.fold_in(key, number)
    return key


def _add(sums: Any, terms: Any) -> Any:
    """Adds two trees, in the types of the first."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, terms)


def _zeros_like(tree: Any) -> Any:
    """Float32 zeros in the shapes of a tree."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)
