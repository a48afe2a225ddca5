"""The embedding layer: sum of token, position and type embeddings."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.dropout import dropout
from research.models.layers import norm
from research.models.linear import KERNEL_INIT
from research.models.positions.learned import table_rows
from research.models.positions.segment_positions import Positions
from research.types import Array, Key, Params

# Rows of a table up to which its gradient is a product with one-hot rows.
ONE_HOT_ROWS = 2_048


class EmbeddingTable(nn.Embed):
    """A table of embeddings, in float32, whose rows are read in the encoder's dtype."""

    def __call__(self, rows: Array) -> Array:
        """The rows [B, S] of the table: [B, S, D]."""
        return take_rows(self.embedding, rows, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def take_rows(table: Array, rows: Array, dtype: str) -> Array:
    """Rows [B, S] of a table [P, D] in another dtype: [B, S, D].

    The gradient sums the tokens of each row in the table's dtype. Where many tokens
    share few rows, adding them one by one makes GPUs wait, so that the sums of short
    tables are a matrix product with one-hot rows there.
    """
    return jnp.take(table, rows, axis=0).astype(dtype)


def _take_rows_forward(table, rows, dtype):
    return take_rows(table, rows, dtype), (table, rows)


def _take_rows_backward(dtype, residuals, gradient):
    table, rows = residuals
    num_rows = len(table)

    def add(gradient, rows):
        return jnp.zeros_like(table).at[rows].add(gradient.astype(table.dtype))

    def sum_products(gradient, rows):
        # [B, S, P] x [B, S, D] -> [P, D], summed in float32
        one_hot = jax.nn.one_hot(rows, num_rows, dtype=gradient.dtype)
        summed = jnp.einsum(
            "bsp,bsd->pd",
            one_hot,
            gradient,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return summed.astype(table.dtype)

    if num_rows > ONE_HOT_ROWS:
        return add(gradient, rows), None
    sums = jax.lax.platform_dependent(gradient, rows, cpu=add, default=sum_products)
    return sums, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)


class TokenEmbedding(nn.Module):
    """Sum of token, position and type embeddings, normalized: [B, S] -> [B, S, D]."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(
        self,
        token_ids: Array,
        positions: Positions,
        key: Key | None,
        states: Array | None = None,
    ) -> Array:
        """Embeds token_ids [B, S]; `states` [B, S, D] replace the token embeddings."""
        cfg = self.cfg

        def table(rows, name):
            return EmbeddingTable(
                rows,
                cfg.width,
                embedding_init=KERNEL_INIT,
                dtype=cfg.compute_dtype,
                name=name,
            )

        # [B, S, D] token embeddings (Gemma scales them)
        x = table(cfg.vocab_size, "token")(token_ids) if states is None else states
        if cfg.embed_scale != 1 and states is None:
            x = x * jnp.asarray(cfg.embed_scale, x.dtype)
        # [B, S, D] plus embeddings of positions and of token type 0
        if cfg.position == "learned":
            num_rows = cfg.max_len + cfg.position_offset
            x = x + table(num_rows, "position")(table_rows(positions, cfg, key))
        if cfg.type_vocab:
            # One row for all tokens, whose gradient is a plain sum
            x = x + table(cfg.type_vocab, "type")(jnp.zeros((1, 1), jnp.int32))
        if cfg.embed_norm:
            x = norm(cfg, "norm")(x)
        return dropout(x, cfg.dropout, key)


def embed_tokens(
    params: Params,
    token_ids: Array,
    positions: Positions,
    cfg: EncoderConfig,
    *,
    states: Array | None = None,
    key: Key | None = None,
) -> Array:
    """Applies the encoder's embedding layer; returns [B, S, D].

    Args:
        params: The encoder's parameters.
        token_ids: [B, S] int32.
        positions: Positions [B, S] of the tokens.
        cfg: The encoder's shape.
        states: [B, S, D] states that replace the token embeddings; None for none.
        key: Dropout key; None runs without dropout.
    """
    chex.assert_equal_shape((token_ids, positions.segment_ids))
    variables = {"params": params["embed"]}
    return TokenEmbedding(cfg).apply(variables, token_ids, positions, key, states)
