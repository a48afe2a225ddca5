"""Token prediction losses: chunked cross-entropy over the vocabulary, bag of words.

Only a part of the logits is in memory at a time. Losses are weighted sums, so that they
do not depend on padding, chunks or the number of devices.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from research import sharding
from research.types import VOCABULARY, Array, PretrainingBatch


class PredictedTokens(NamedTuple):
    """Hidden states and the tokens that are predicted from them.

    Attributes:
        states: [R, P, D] states, after the prediction head if there is one.
        labels: [R, P] int32 ids of the tokens to predict.
        valid: [R, P] bool, whether a prediction counts in the loss.
    """

    states: Array
    labels: Array
    valid: Array


def max_logits() -> int:
    """Approximate number of logits in memory at a time.

    16 MiB of float32 on CPU, because larger chunks do not fit the cache: the loss of
    8,192 tokens takes 1.0 s, and 1.4 s with 64 MiB. Accelerators need larger products.
    """
    return 1 << 22 if jax.default_backend() == "cpu" else 1 << 24


class TokenLosses(NamedTuple):
    """The loss of each token, which has no gradient.

    Attributes:
        loss: [N] float32 cross-entropy, in nats.
        correct: [N] bool, whether no other token has a larger logit.
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
    """Softmax cross-entropy over the vocabulary.

    Logits are x @ table.T + bias, in float32. The forward pass computes their gradient
    with them, chunk by chunk, and stores the gradients of x, table and bias for the
    backward pass. This takes three matrix products of N * D * V; recomputing the logits
    in the backward pass would take four.

    Args:
        x: [N, D] states.
        table: [V, D] output embeddings.
        bias: [V] bias of the logits.
        labels: [N] int32 token ids.
        weight: [N] float32 weight of each row in the sum; 0 for rows that do not count.
            Weights have no gradient.
        logits: Number of logits in memory at a time; None for `max_logits`.

    Returns:
        The weighted sum, [] float32, and the loss of every row.
    """
    chex.assert_rank([x, table, bias], [2, 2, 1])
    chex.assert_equal_shape_prefix([x, labels, weight], 1)
    compute = partial(_sum_chunks, logits=logits or max_logits())
    axes = sharding.batch_axes(jax.sharding.get_abstract_mesh())
    devices = sharding.count_batch_devices()
    if devices == 1 or len(x) % devices:
        return compute(x, table, bias, labels, weight)

    # Each device works through its own rows, and gradients of the table, which chunks
    # add up, are exchanged once
    def compute_share(*shares):
        total, losses = compute(*shares)
        return jax.lax.psum(total, axes), losses

    rows = P(axes)
    specs = {"in_specs": (rows, P(), P(), rows, rows), "out_specs": (P(), rows)}
    split = jax.shard_map(compute_share, check_vma=False, **specs)
    return split(x, table, bias, labels, weight)


def _sum_chunks(x, table, bias, labels, weight, *, logits):
    """`cross_entropy` of the rows of one device."""
    # Number and size of chunks of rows, and number of padding rows
    chunks = min(len(x), -(-len(x) * len(table) // logits))
    size = -(-len(x) // chunks)
    pad = chunks * size - len(x)

    def split_chunks(y):
        # Row i goes to chunk i % chunks, so that devices that the compiler splits the
        # rows over hold some of every chunk.
        y = jnp.pad(y, ((0, pad), *((0, 0),) * (y.ndim - 1)))
        return y.reshape(size, chunks, *y.shape[1:]).swapaxes(0, 1)

    total, losses = _chunked_loss(
        split_chunks(x), table, bias, split_chunks(labels), split_chunks(weight)
    )
    # [chunks, N / chunks] back to [N]
    losses = jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(-1)[: len(x)], losses)
    return total, losses


@jax.custom_vjp
def _chunked_loss(x, table, bias, labels, weight):
    """`cross_entropy` of x [chunks, N/chunks, D], labels and weights alike."""

    def sum_chunk(parts):
        states, targets, weights = parts
        loss, correct, _ = _softmax(states, table, bias, targets)
        return (loss * weights).sum(), TokenLosses(loss, correct)

    total, losses = jax.lax.map(sum_chunk, (x, labels, weight))
    return total.sum(), losses


def _chunked_loss_forward(x, table, bias, labels, weight):
    """The same, with the gradients of the sum by x, table and bias as residuals."""
    narrow = table.astype(x.dtype)

    def add_chunk(sums, parts):
        states, targets, weights = parts
        # n = N / chunks rows: [n] losses, [n, V] probabilities
        loss, correct, p = _softmax(states, narrow, bias, targets)
        # [n, V] gradient of the logits: (p - onehot) * weight
        hit = jnp.arange(p.shape[1], dtype=targets.dtype)[None] == targets[:, None]
        d = (p - hit.astype(p.dtype)) * weights[:, None]
        # Gradients of bias [V] and table [V, D], summed over chunks; of x [n, D]
        by_bias = d.sum(0)
        d = d.astype(x.dtype)
        by_table = jnp.matmul(d.T, states, preferred_element_type=jnp.float32)
        out = (d @ narrow, (loss * weights).sum(), TokenLosses(loss, correct))
        return (sums[0] + by_table, sums[1] + by_bias), out

    zeros = jnp.zeros(table.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)
    (by_table, by_bias), out = jax.lax.scan(add_chunk, zeros, (x, labels, weight))
    by_x, total, losses = out
    by_table, by_bias = by_table.astype(table.dtype), by_bias.astype(bias.dtype)
    return (total.sum(), losses), (by_x, by_table, by_bias)


def _chunked_loss_backward(gradients, cotangents):
    # The stored gradients are those of the sum: multiply by its cotangent
    scale = cotangents[0]
    return (*(g * scale.astype(g.dtype) for g in gradients), None, None)


_chunked_loss.defvjp(_chunked_loss_forward, _chunked_loss_backward)


def _softmax(x, table, bias, labels):
    """Losses [n], correctness [n] and probabilities [n, V] of states [n, D]."""
    z = vocabulary_logits(x, table, bias)
    # Softmax, stabilized by the largest logit of each row
    largest = z.max(1)
    p = jnp.exp(z - largest[:, None])
    total = p.sum(1)
    label_logits = jnp.take_along_axis(z, labels[:, None], 1)[:, 0]
    losses = jnp.log(total) + largest - label_logits
    return losses, label_logits >= largest, p / total[:, None]


def vocabulary_logits(x: Array, table: Array, bias: Array) -> Array:
    """[N, D] states -> [N, V] float32 logits x @ table.T + bias."""
    table = table.astype(x.dtype)
    z = jnp.matmul(x, table.T, preferred_element_type=jnp.float32)
    return z + bias[None]


@jax.named_scope(VOCABULARY)
def bag_of_words(
    x: Array, table: Array, bias: Array, rows: PretrainingBatch, texts: int
) -> tuple[Array, Array]:
    """Cross-entropy of the set of a text's tokens, from its ordinary tokens (DupMAE).

    The logits of a text are the maximum over its tokens except the first ([CLS]). Each
    distinct ordinary token of the text has weight 1/n, where n counts ordinary tokens
    (Xiao et al. 2023, RetroMAE-2, equations 6 to 8, as in the authors' code).

    Args:
        x: [R, S, D] states of the masked texts, after the prediction head.
        table: [V, D] token embeddings.
        bias: [V] bias of the logits.
        rows: The unmasked texts.
        texts: M, the largest number of texts per row.

    Returns:
        The sum over texts of the negative weighted log-softmax, [] float32, and the
        number of texts, [] float32.
    """
    chex.assert_shape(x, (*rows.word_ids.shape, table.shape[1]))

    def row_loss(row):
        states, ids, segment, word = row  # [S, D], and [S] each
        # [M, V] logits of the texts: the maximum over tokens that are not [CLS]
        first = jnp.pad(segment[1:] != segment[:-1], (1, 0), constant_values=True)
        pooled_segment = jnp.where(first, 0, segment)
        z = vocabulary_logits(states, table, bias)
        text_logits = jax.ops.segment_max(z, pooled_segment, texts + 1)[1:]
        # A missing text has the maximum -inf, but its targets have weight 0.
        text_logits = jnp.where(jnp.isfinite(text_logits), text_logits, 0.0)
        log_p = jax.nn.log_softmax(text_logits, axis=1)

        # [S] whether a token is ordinary, and whether its id occurs for the first time
        ordinary = word > 0
        equal = (ids[:, None] == ids[None]) & (segment[:, None] == segment[None])
        earlier = jnp.tril(equal, -1) & ordinary[None]
        distinct = ordinary & ~earlier.any(1)

        # [S] weights, 1/n for distinct tokens
        count = jax.ops.segment_sum(ordinary.astype(jnp.float32), segment, texts + 1)
        weight = jnp.where(distinct, 1 / jnp.maximum(count[segment], 1), 0.0)
        loss = -(weight * log_p[jnp.maximum(segment, 1) - 1, ids]).sum()
        return loss, (count[1:] > 0).sum(dtype=jnp.float32)

    tokens = rows.tokens
    inputs = (x, tokens.token_ids, tokens.segment_ids, rows.word_ids)
    loss, count = jax.lax.map(jax.checkpoint(row_loss), inputs)
    return loss.sum(), count.sum()


class TokenMeans(NamedTuple):
    """Means over the valid tokens of one `PredictedTokens`, without a gradient.

    Attributes:
        loss: [] float32 cross-entropy.
        accuracy: [] float32, the share of tokens that are predicted correctly.
    """

    loss: Array
    accuracy: Array


def mean_token_losses(
    table: Array,
    bias: Array | None,
    parts: Sequence[PredictedTokens],
    weights: Sequence[float] = (1.0,),
) -> tuple[Array, list[TokenMeans]]:
    """The weighted sum of mean cross-entropies, in one pass over the vocabulary.

    Args:
        table: [V, D] output embeddings.
        bias: [V] bias of the logits; None for none.
        parts: Groups of predicted tokens.
        weights: Weight of each part's mean.

    Returns:
        The weighted sum, [] float32, and the means of each part.
    """
    total, losses = token_losses(table, bias, parts, weights)
    return total, list(map(average_tokens, parts, losses))


def token_losses(
    table: Array,
    bias: Array | None,
    parts: Sequence[PredictedTokens],
    weights: Sequence[float] = (1.0,),
) -> tuple[Array, list[TokenLosses]]:
    """The weighted sum of mean cross-entropies, and the loss of every token.

    Args:
        table: [V, D] output embeddings.
        bias: [V] bias of the logits; None for none.
        parts: Groups of predicted tokens, all with R rows.
        weights: Weight of each part's mean.

    Returns:
        The weighted sum, [] float32, and the losses [R, P] of each part, for valid and
        other tokens alike; they have no gradient.
    """
    chex.assert_rank(table, 2)
    for part in parts:
        chex.assert_equal_shape([part.labels, part.valid])
        chex.assert_shape(part.states, (*part.labels.shape, table.shape[1]))

    def flatten_parts(arrays):
        joined = jnp.concatenate(arrays, 1)  # [R, sum of P, ...]
        return joined.reshape(-1, *joined.shape[2:])

    # [R, P] weight of each token in the sum: 0, or its part's weight over its count
    token_weights = [
        part.valid.astype(jnp.float32)
        * (weight / jnp.maximum(part.valid.sum(dtype=jnp.float32), 1.0))
        for part, weight in zip(parts, weights, strict=True)
    ]
    total, losses = cross_entropy(
        flatten_parts([part.states for part in parts]),
        table,
        jnp.zeros(len(table), jnp.float32) if bias is None else bias,
        flatten_parts([part.labels for part in parts]),
        flatten_parts(token_weights),
    )
    # [R * sum of P] back to each part's [R, P]
    ends = np.cumsum([part.valid.shape[1] for part in parts])[:-1]
    values = [jnp.split(x.reshape(len(parts[0].valid), -1), ends, 1) for x in losses]
    return total, [TokenLosses(*part) for part in zip(*values, strict=True)]


def average_tokens(part: PredictedTokens, losses: TokenLosses) -> TokenMeans:
    """Averages a part's losses [R, P] over its valid tokens."""
    count = jnp.maximum(part.valid.sum(dtype=jnp.float32), 1.0)
    return TokenMeans(
        *(
            jnp.where(part.valid, x.astype(jnp.float32), 0.0).sum() / count
            for x in losses
        )
    )
