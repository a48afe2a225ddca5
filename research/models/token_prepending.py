"""What is read of an encoder: which layers, and which tokens take others' states."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.sharding import split_rows
from research.types import Array, Key, Params


class Prepend(NamedTuple):
    """Where token prepending copies what (Fu et al. 2024).

    Attributes:
        target: [B] int32, the place of the token that is prepended, <PST>.
        source: [B] int32, the place of the last token, whose state it takes.
        blocks: [L] bool, before which blocks it does so.
    """

    target: Array
    source: Array
    blocks: Array


def prepend_blocks(window: tuple[int, int], depth: int) -> np.ndarray:
    """[L] bool: the blocks start <= l < exit of a window (start, exit).

    Raises:
        ValueError: the encoder has no such blocks.
    """
    start, end = window
    if not 0 <= start <= end <= depth:
        raise ValueError(
            f"token prepending before the blocks {start}:{end} needs 0 <= start <= "
            f"exit <= {depth}, the depth of this encoder"
        )
    block = np.arange(depth)
    return (start <= block) & (block < end)


def add_token(
    params: Params, cfg: EncoderConfig, key: Key
) -> tuple[Params, EncoderConfig]:
    """The encoder with one more token, whose id is the old `cfg.vocab`.

    Its row of the table is drawn from a normal distribution of variance 1, as that of
    <PST> in the code of Fu et al. 2024, and not of the variance of the table.
    """
    embed = params["embed"]
    table = jnp.asarray(embed["token"]["embedding"])
    row = jax.random.normal(key, (1, table.shape[1]), table.dtype)
    embed = {**embed, "token": {"embedding": jnp.concatenate([table, row])}}
    return {**params, "embed": embed}, dataclasses.replace(
        cfg, vocab_size=cfg.vocab_size + 1
    )


def _prepended(x: Array, prepend: Prepend, copies: Array) -> Array:
    """States [B, S, D] with those at `source` put at `target`, if copies [] says so."""

    def copied(row, target, source):
        state = jnp.where(copies, row[source], row[target])
        return jax.lax.dynamic_update_index_in_dim(row, state, target, 0)

    return split_rows(jax.vmap(copied)(x, prepend.target, prepend.source))
