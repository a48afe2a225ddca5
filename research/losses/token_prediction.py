"""Losses over the vocabulary, with only a part of the logits in memory at a time.

They are sums, so that padding, chunks and devices change no value.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.types import VOCABULARY, Array, Params, PretrainingBatch


class PredictedTokens(NamedTuple):
    """States from which tokens are predicted; [R, P, ...].

    Attributes:
        states: [R, P, D], after the head.
        labels: [R, P] int32 token ids.
        real: [R, P] bool, which count.
    """

    states: Array
    labels: Array
    valid: Array


def most_logits() -> int:
    """How many logits stand in memory at a time, about.

    16 MiB of float32 on CPU, where more leave the cache: of 8,192 tokens the loss takes
    1.0 s so, 1.4 s with 64 MiB. Accelerators want larger products.
    """
    return 1 << 22 if jax.default_backend() == "cpu" else 1 << 24


class TokenLosses(NamedTuple):
    """What a loss over tokens says of each; without a gradient.

    Attributes:
        loss: [N] float32 cross-entropy.
        right: [N] bool, whether the token is (among) the most likely.
    """

    loss: Array
    correct: Array


@jax.named_scope(VOCABULARY)
def cross_entropy(
    x: Array,
    table: Array,
    bias: Array,
    labels: Array,
    weight: Array,
    *,
    logits: int | None = None,
) -> tuple[Array, TokenLosses]:
    """Softmax cross-entropy over the vocabulary of a tied output layer.

    Logits are x @ table.T + bias, in float32. Their gradient is computed beside them,
    while they stand in memory, and kept as that of x and of the table: three products
    of [N, D] with [V, D], where computing the logits again would make it four.

    Args:
        x: [N, D] states.
        table: [V, D] token embeddings.
        bias: [V].
        labels: [N] int32 token ids.
        weight: [N] float32, each row's in the sum; 0 for rows that do not count. It has
            no gradient.
        logits: how many of them may stand in memory at a time; None for `most_logits`.

    Returns:
        the weighted sum [], float32, and every row's own loss.
    """
    chunks = min(len(x), -(-len(x) * len(table) // (logits or most_logits())))
    size = -(-len(x) // chunks)
    pad = chunks * size - len(x)

    def split(y):
        # Row i goes to chunk i % chunks: every chunk is spread over all devices.
        y = jnp.pad(y, ((0, pad), *((0, 0),) * (y.ndim - 1)))
        return y.reshape(size, chunks, *y.shape[1:]).swapaxes(0, 1)

    total, each = _in_chunks(split(x), table, bias, split(labels), split(weight))
    return total, jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(-1)[: len(x)], each)


@jax.custom_vjp
def _in_chunks(x, table, bias, labels, weight):
    """`cross_entropy` of x [chunks, N/chunks, D] and the like."""

    def chunk(parts):
        states, targets, weights = parts
        loss, right, _ = _softmax(states, table, bias, targets)
        return (loss * weights).sum(), TokenLosses(loss, right)

    total, each = jax.lax.map(chunk, (x, labels, weight))
    return total.sum(), each


def _in_chunks_forward(x, table, bias, labels, weight):
    """The same, and the gradient of the sum by x, table and bias."""
    narrow = table.astype(x.dtype)

    def chunk(sums, parts):
        states, targets, weights = parts
        loss, right, p = _softmax(states, narrow, bias, targets)
        hit = jnp.arange(p.shape[1], dtype=targets.dtype)[None] == targets[:, None]
        d = (p - hit.astype(p.dtype)) * weights[:, None]
        by_bias = d.sum(0)
        d = d.astype(x.dtype)
        by_table = jnp.matmul(d.T, states, preferred_element_type=jnp.float32)
        out = (d @ narrow, (loss * weights).sum(), TokenLosses(loss, right))
        return (sums[0] + by_table, sums[1] + by_bias), out

    zeros = jnp.zeros(table.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)
    (by_table, by_bias), out = jax.lax.scan(chunk, zeros, (x, labels, weight))
    by_x, total, each = out
    by_table, by_bias = by_table.astype(table.dtype), by_bias.astype(bias.dtype)
    return (total.sum(), each), (by_x, by_table, by_bias)


def _in_chunks_backward(gradients, cotangents):
    scale = cotangents[0]
    return (*(g * scale.astype(g.dtype) for g in gradients), None, None)


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def _softmax(x, table, bias, labels):
    """Of [n, D] states: losses [n], whether right [n], probabilities [n, V]."""
    z = vocabulary_logits(x, table, bias)
    most = z.max(1)
    p = jnp.exp(z - most[:, None])
    total = p.sum(1)
    picked = jnp.take_along_axis(z, labels[:, None], 1)[:, 0]
    return jnp.log(total) + most - picked, picked >= most, p / total[:, None]


def vocabulary_logits(x: Array, table: Array, bias: Array) -> Array:
    """[N, D] states -> [N, V] float32 logits of the tied output layer."""
    table = table.astype(x.dtype)
    z = jnp.matmul(x, table.T, preferred_element_type=jnp.float32)
    return z + bias[None]


@jax.named_scope(VOCABULARY)
def bag_of_words(
    x: Array, table: Array, bias: Array, rows: PretrainingBatch, texts: int
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
    parts = (x, tokens.token_ids, tokens.segment_ids, rows.word_ids)
    loss, count = jax.lax.map(jax.checkpoint(row), parts)
    return loss.sum(), count.sum()


def predictions(
    params: Params, parts: Sequence[PredictedTokens], weights: Sequence[float]
) -> tuple[Array, list[tuple[Array, Array]]]:
    """The weighted sum of mean cross-entropies, all of them in one pass.

    Args:
        params: {"encoder", "head", ...}.
        parts: what is predicted.
        weights: of the parts' means.

    Returns:
        the sum [], and each part's (mean loss, share of right tokens), which have no
        gradient.
    """
    total, each = token_losses(params, parts, weights)
    return total, list(map(means, parts, each))


def means(part: PredictedTokens, each: TokenLosses) -> tuple[Array, Array]:
    """The mean loss, and the share of right tokens, of a part's real ones."""
    count = jnp.maximum(part.valid.sum(dtype=jnp.float32), 1.0)
    loss, right = (
        jnp.where(part.valid, x.astype(jnp.float32), 0.0).sum() / count for x in each
    )
    return loss, right


def token_losses(
    params: Params, parts: Sequence[PredictedTokens], weights: Sequence[float]
) -> tuple[Array, list[TokenLosses]]:
    """The same sum, and each part's losses [R, P], real or not."""

    def flat(arrays):
        whole = jnp.concatenate(arrays, 1)
        return whole.reshape(-1, *whole.shape[2:])

    shares = [
        part.valid.astype(jnp.float32)
        * (weight / jnp.maximum(part.valid.sum(dtype=jnp.float32), 1.0))
        for part, weight in zip(parts, weights, strict=True)
    ]
    total, each = cross_entropy(
        flat([part.states for part in parts]),
        params["encoder"]["embed"]["token"]["embedding"],
        params["head"]["bias"],
        flat([part.labels for part in parts]),
        flat(shares),
    )
    ends = np.cumsum([part.valid.shape[1] for part in parts])[:-1]
    values = [jnp.split(x.reshape(len(parts[0].valid), -1), ends, 1) for x in each]
    return total, [TokenLosses(*part) for part in zip(*values, strict=True)]
