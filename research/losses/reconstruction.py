"""Losses over the vocabulary, with only a part of the logits in memory at a time.

Each returns a sum and a count, so that padding, chunks and devices change no value.
"""

import jax
import jax.numpy as jnp

from research.structs import Array, Rows

# Logits that stand in memory at a time, about: 64 MiB in float32.
LOGITS = 1 << 24


def cross_entropy(
    x: Array,
    table: Array,
    bias: Array,
    labels: Array,
    valid: Array,
    *,
    logits: int = LOGITS,
) -> tuple[Array, Array]:
    """Softmax cross-entropy over the vocabulary of a tied output layer.

    Logits are x @ table.T + bias, in float32; the backward pass computes them again.

    Args:
        x: [N, D] states.
        table: [V, D] token embeddings.
        bias: [V].
        labels: [N] int32 token ids.
        valid: [N] bool, which rows count.
        logits: how many numbers of logits may stand in memory at a time.

    Returns:
        the sum over the valid rows [], and their number [] (float32).
    """
    chunks = min(len(x), -(-len(x) * len(table) // logits))
    size = -(-len(x) // chunks)
    pad = chunks * size - len(x)

    def split(y):
        # Row i goes to chunk i % chunks: every chunk is spread over all devices.
        y = jnp.pad(y, ((0, pad), *((0, 0),) * (y.ndim - 1)))
        return y.reshape(size, chunks, *y.shape[1:]).swapaxes(0, 1)

    def chunk(parts):
        states, targets, real = parts
        z = vocabulary_logits(states, table, bias)
        picked = jnp.take_along_axis(z, targets[:, None], 1)[:, 0]
        return jnp.where(real, jax.nn.logsumexp(z, axis=1) - picked, 0.0).sum()

    parts = jax.tree.map(split, (x, labels, valid))
    total = jax.lax.map(jax.checkpoint(chunk), parts).sum()
    return total, valid.sum(dtype=jnp.float32)


def vocabulary_logits(x: Array, table: Array, bias: Array) -> Array:
    """[N, D] states -> [N, V] float32 logits of the tied output layer."""
    table = table.astype(x.dtype)
    z = jnp.matmul(x, table.T, preferred_element_type=jnp.float32)
    return z + bias[None]


def bag_of_words(
    x: Array, table: Array, bias: Array, rows: Rows, texts: int
) -> tuple[Array, Array]:
    """Predicting the set of a text's tokens from its ordinary tokens (DupMAE).

    The logits of a text are the largest over its tokens but the first ([CLS]); each
    distinct ordinary token of the text weighs 1/n, n the number of its ordinary tokens
    (Xiao et al. 2023, RetroMAE-2, equations 6 to 8, as in the authors' code).

    Args:
        x: [R, S, D] states of the masked texts, after the head's transform.
        table: [V, D] token embeddings.
        bias: [V].
        rows: the unmasked texts.
        texts: M, the most texts of a row.

    Returns:
        the sum over the texts of minus the weighted log-softmax [], and the number of
        texts [] (float32).
    """

    def row(parts):
        states, ids, segment, word = parts
        first = jnp.pad(segment[1:] != segment[:-1], (1, 0), constant_values=True)
        shown = jnp.where(first, 0, segment)  # neither [CLS] nor padding
        z = vocabulary_logits(states, table, bias)
        most = jax.ops.segment_max(z, shown, texts + 1)[1:]  # [M, V]
        # A text without tokens has a maximum of -inf, but no target either.
        most = jnp.where(jnp.isfinite(most), most, 0.0)
        log_p = jax.nn.log_softmax(most, axis=1)
        ordinary = word > 0
        same = (ids[:, None] == ids[None]) & (segment[:, None] == segment[None])
        earlier = jnp.tril(same, -1) & ordinary[None]
        distinct = ordinary & ~earlier.any(1)
        count = jax.ops.segment_sum(ordinary.astype(jnp.float32), segment, texts + 1)
        weight = jnp.where(distinct, 1 / jnp.maximum(count[segment], 1), 0.0)
        loss = -(weight * log_p[jnp.maximum(segment, 1) - 1, ids]).sum()
        return loss, (count[1:] > 0).sum(dtype=jnp.float32)

    tokens = rows.tokens
    parts = (x, tokens.ids, tokens.segment, rows.word)
    loss, count = jax.lax.map(jax.checkpoint(row), parts)
    return loss.sum(), count.sum()
