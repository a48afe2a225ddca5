"""Poolings without parameters: mean, first, last, maximum, position-weighted mean.

A pooling is a function of hidden states [B, S, D] and a mask [B, M, S] of the tokens to
pool for each of the M texts of a row. It returns [B, M, D] float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.types import Array, Key, Params, Pool

# Kinds of embeddings of one vector per text; others have one for each token.
ONE_VECTOR_KINDS = ("dense", "sparse")


class LearnedPooling(NamedTuple):
    """A pooling that has parameters, or that uses more than the last layer.

    Attributes:
        init: (key, encoder config, encoder parameters) -> the pooling's parameters;
            None if it has none.
        pool: (encoder parameters, encoder config, states, mask [B, M, S]) ->
            [B, M, E]. The encoder parameters hold those of the pooling as "pooling".
            The states are those of the last layer [B, S, D] or, with `pool_layer`, the
            pooled vectors of all layers [L, B, M, D].
        pool_layer: (states [B, S, D], mask) -> [B, M, D], applied first to each of the
            L layers; None uses the last layer only.
        reads_router: Whether `pool_layer` takes (states, router logits
            [B, S, experts], mask).
        reads_token_ids: Whether `pool` takes the ids of the tokens [B, S], too, as the
            argument `token_ids`.
        reuses_head: Whether `init` uses the MLM "head" of a pre-training run, if any.
        width: (encoder config) -> E; None if E is the encoder's width.
        kind: "dense" for one vector per text; "sparse" for one of a non-negative weight
            for each token of the vocabulary; "multi_vector" for a vector per token:
            `pool` then returns [B, S, E], zeros for tokens that are not pooled; a kind
            of rows of tokens (`transforms.token_rows`), "m3" or "slim", likewise.
        pool_query: (encoder parameters, encoder config, token ids [B, S], mask) ->
            [B, M, E], the vectors of queries, for which the encoder is not run; None
            for those of `pool`.
        base: The pooling whose vectors `encode_vectors` maps; None for a pooling of the
            states themselves.
        encode_vectors: (parameters of the pooling, vectors [..., D]) -> [..., E].
    """

    init: Callable[[Key, EncoderConfig, Params], Params] | None
    pool: Callable[..., Array]
    pool_layer: Callable[..., Array] | None = None
    reads_router: bool = False
    reads_token_ids: bool = False
    reuses_head: bool = False
    width: Callable[[EncoderConfig], int] | None = None
    kind: str = "dense"
    pool_query: Callable[[Params, EncoderConfig, Array, Array], Array] | None = None
    base: Pool | None = None
    encode_vectors: Callable[[Params, Array], Array] | None = None


def mean_pool(tokens: Array, mask: Array) -> Array:
    """Mean of the states of each text; 0 for a text without tokens.

    Args:
        tokens: [B, S, D] hidden states.
        mask: [B, M, S] bool, the tokens to pool for text m of the row.

    Returns:
        [B, M, D] float32.
    """
    return _weighted_mean(tokens, mask.astype(jnp.float32))


def cls_pool(tokens: Array, mask: Array) -> Array:
    """State of the first token of each text; shapes as in `mean_pool`."""
    return _weighted_mean(tokens, first_token_mask(mask).astype(jnp.float32))


def last_token_pool(tokens: Array, mask: Array) -> Array:
    """State of the last token of each text; shapes as in `mean_pool`."""
    last = jnp.flip(first_token_mask(jnp.flip(mask, -1)), -1)  # [B, M, S]
    return _weighted_mean(tokens, last.astype(jnp.float32))


def max_pool(tokens: Array, mask: Array) -> Array:
    """Maximum of each channel over the text; 0 for a text without tokens.

    Shapes as in `mean_pool`.
    """
    _check_shapes(tokens, mask)

    def pool_text(mask):  # [B, S] -> [B, D]
        x = jnp.where(mask[:, :, None], tokens.astype(jnp.float32), -jnp.inf)
        return jnp.where(mask.any(1)[:, None], x.max(1), 0.0)

    # One text at a time: [B, M, S, D] is never in memory.
    return jax.lax.map(pool_text, mask.swapaxes(0, 1)).swapaxes(0, 1)


def weighted_mean_pool(tokens: Array, mask: Array) -> Array:
    """Mean with weights 1, 2, 3, ... along the text (SGPT, Muennighoff 2022, eq. 2).

    Shapes as in `mean_pool`.
    """
    # [B, M, S] rank of each token in its text, 0 for others
    ranks = jnp.cumsum(mask, -1, dtype=jnp.int32) * mask.astype(jnp.int32)
    return _weighted_mean(tokens, ranks.astype(jnp.float32))


def first_token_mask(mask: Array) -> Array:
    """Mask [B, M, S] of the first token of each text."""
    return mask & (jnp.cumsum(mask, -1, dtype=jnp.int32) == 1)


def _weighted_mean(tokens: Array, weights: Array) -> Array:
    """Weighted mean of states: [B, S, D], [B, M, S] -> [B, M, D] float32."""
    _check_shapes(tokens, weights)
    # [B, M, S] weights that sum to 1; all 0 for a missing text
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return jnp.einsum(
        "bms,bsd->bmd",
        weights,
        tokens.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def _check_shapes(tokens: Array, mask: Array) -> None:
    """Checks the shapes of states [B, S, D] and a mask [B, M, S]."""
    chex.assert_rank(tokens, 3)
    chex.assert_shape(mask, (tokens.shape[0], None, tokens.shape[1]))
