"""Token prepending (Fu et al. 2024): copies the last token's state to an early token.

With causal attention, early tokens do not attend to the end of the text. Before some
blocks, the hidden state of the text's last token is copied to the position of a token
<PST> at its start, which all later tokens attend to.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.sharding import split_hidden
from research.types import Array, Key, Params

# (states [B, S, D], one layer's slice of the scan inputs) -> (states, outputs)
LayerFn = Callable[[Array, Any], tuple[Array, Any]]


class Prepend(NamedTuple):
    """Positions and blocks of token prepending.

    Attributes:
        target: [B] int32 row position of <PST>, to which the state is copied.
        source: [B] int32 row position of the last token, whose state is copied.
        blocks: [L] bool, whether the state is copied before each block.
    """

    target: Array
    source: Array
    blocks: Array


def prepend_blocks(window: tuple[int, int], depth: int) -> np.ndarray:
    """[L] bool mask of the blocks start <= l < exit of a window (start, exit).

    Raises:
        ValueError: The encoder has no such blocks.
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
    """Adds a token to the encoder's vocabulary; its id is the old `cfg.vocab_size`.

    Its embedding is sampled from a normal distribution of variance 1, as for <PST> in
    the code of Fu et al. 2024, not of the variance of the table. An untied output layer
    (`heads.init_lm_head`) gets a row of zeros.
    """
    embed = params["embed"]
    # [V+1, D] token table
    table = jnp.asarray(embed["token"]["embedding"])
    row = jax.random.normal(key, (1, table.shape[1]), table.dtype)
    embed = {**embed, "token": {"embedding": jnp.concatenate([table, row])}}
    params = {**params, "embed": embed}
    if "lm_head" in params:
        # [V+1, D] output layer
        kernel = jnp.asarray(params["lm_head"]["kernel"])
        params["lm_head"] = {"kernel": jnp.pad(kernel, [(0, 1), (0, 0)])}
    return params, dataclasses.replace(cfg, vocab_size=cfg.vocab_size + 1)


def prepend_in_layers(
    layer_fn: LayerFn, scanned: Any, prepend: Prepend | None
) -> tuple[LayerFn, Any]:
    """Adds token prepending to a layer function and its scan inputs.

    Args:
        layer_fn: Function that is scanned over layers.
        scanned: Its inputs, stacked over layers [L, ...].
        prepend: Positions and blocks of token prepending; None changes nothing.
    """
    if prepend is None:
        return layer_fn, scanned

    def prepend_and_apply(x, scanned):
        copies, scanned = scanned
        return layer_fn(_copy_states(x, prepend, copies), scanned)

    return prepend_and_apply, (prepend.blocks, scanned)


def _copy_states(x: Array, prepend: Prepend, copies: Array) -> Array:
    """Copies states of x [B, S, D] from `source` to `target` if `copies` [] is True."""

    def copy_in_row(row, target, source):
        # [D] the copied state, or the old one
        state = jnp.where(copies, row[source], row[target])
        return jax.lax.dynamic_update_index_in_dim(row, state, target, 0)

    return split_hidden(jax.vmap(copy_in_row)(x, prepend.target, prepend.source))
