"""Decoders of masked-autoencoder pre-training, on packed rows."""

import dataclasses

import jax
import jax.numpy as jnp

from research.models import encoder
from research.models.attention.inputs import (
    AttentionInputs,
    CosSin,
    Kind,
    make_attention_inputs,
)
from research.models.config import EncoderConfig
from research.models.layers import Block, Embedder, norm
from research.models.positions.learned import table_rows
from research.models.positions.segment_positions import Positions
from research.models.token_ops import gather_tokens
from research.sharding import split_rows
from research.types import Array, Key, Params


def init_decoder(key: Key, cfg: EncoderConfig, depth: int) -> Params:
    """`depth` random blocks like the encoder's, with a final norm if it has one."""
    params = encoder.init(key, _shape(cfg, depth))
    return {name: params[name] for name in ("layers", "final_norm") if name in params}


def copy_decoder(params: Params, depth: int) -> Params:
    """A decoder that begins as a copy of the encoder's first `depth` blocks."""
    parts = {"layers": jax.tree.map(lambda x: x[:depth], params["layers"])}
    if "final_norm" in params:
        parts["final_norm"] = params["final_norm"]
    return jax.tree.map(jnp.array, parts)


def decode(
    params: Params,
    decoder: Params,
    x: Array,
    positions: Positions,
    cfg: EncoderConfig,
    *,
    query_positions: Array | None = None,
    kv_inputs: Array | None = None,
    extra_mask: Array | None = None,
    key: Key | None = None,
) -> Array:
    """The final states of a decoder.

    Its blocks are of the encoder's kind, each seeing its whole text; positions reach
    them as they reach the encoder's (rotations, and the encoder's own attention bias).
    In a pre-norm family a decoder ends with a norm of its own.

    Args:
        params: the encoder's.
        decoder: as `init_decoder` makes them.
        x: [R, S, D] inputs.
        where: places of the tokens, [R, S].
        cfg: the encoder's shape.
        at: [R, P] int32, the places of the row whose states are wanted; None for all.
            Where the scores of rows stand whole in memory, the last block computes
            nothing of the others but their keys and values.
        memory: [R, S, D], what the first block makes keys and values of; None for x.
        sees: [R, S, S] bool, which tokens of its text each may look at; None for all.
            The scores then stand whole in memory.
        key: dropout key; None runs without.

    Returns:
        [R, P, D], or [R, S, D] without `at`.
    """
    depth = len(jax.tree.leaves(decoder["layers"])[0])
    shape = _shape(cfg, depth)
    if extra_mask is not None:
        shape = dataclasses.replace(shape, attention="plain")
    keys = (None,) * (depth + 1) if key is None else jax.random.split(key, depth + 1)
    around = make_attention_inputs(params, positions, shape, keys[depth])
    if extra_mask is not None:
        around = around.restrict(extra_mask)
    for layer in range(depth):
        block = jax.tree.map(lambda w: w[layer], decoder["layers"])  # noqa: B023
        kind = Kind(None, None if cfg.first_norm else jnp.asarray(layer == 0))
        if (
            layer == depth - 1
            and query_positions is not None
            and around.masks is not None
        ):
            kv_inputs = x if kv_inputs is None else kv_inputs
            x, around, query_positions = (
                gather_tokens(x, query_positions),
                _asked(around, query_positions),
                None,
            )
        x = Block(shape).apply(
            {"params": block}, x, around, kind, keys[layer], kv_inputs
        )
        x, kv_inputs = split_rows(x), None
    x = x if query_positions is None else gather_tokens(x, query_positions)
    if "final_norm" in decoder:
        x = norm(cfg, None).apply({"params": decoder["final_norm"]}, x)
    return x


def _shape(cfg: EncoderConfig, depth: int) -> EncoderConfig:
    """The shape of a decoder: every block sees its whole text."""
    return dataclasses.replace(cfg, depth=depth, sliding_window_layers=(), window=0)


def _asked(around: AttentionInputs, at: Array) -> AttentionInputs:
    """The same for queries at the places [R, P] of the row only."""
    terms = around.masks
    bias = terms.bias
    if bias is not None:  # [1, H, S, S]
        bias = jnp.moveaxis(bias[0][:, at], 0, 1)
    terms = terms._replace(
        mask=gather_tokens(terms.mask, at),
        bias=bias,
        branch_masks=tuple(gather_tokens(holds, at) for holds in terms.branch_masks),
    )
    turns = tuple(
        CosSin(tuple(gather_tokens(x, at) for x in turn.query), turn.key)
        for turn in around.rope
    )
    channels, factor = around.channels, around.query_scale
    if channels is not None:
        channels = (gather_tokens(channels[0], at), channels[1])
    if not isinstance(factor, float):
        factor = gather_tokens(factor, at)
    return around._replace(
        masks=terms, rope=turns, query_scale=factor, channels=channels
    )


def embed_tokens(
    params: Params,
    ids: Array,
    positions: Positions,
    cfg: EncoderConfig,
    *,
    states: Array | None = None,
    key: Key | None = None,
) -> Array:
    """The encoder's embedding layer: [R, S, D].

    Args:
        params: the encoder's.
        ids: [R, S] int32.
        where: places of the tokens.
        cfg: the encoder's shape.
        states: [R, S, D] in place of the token embeddings; None for none.
        key: dropout key; None runs without.
    """
    layer = Embedder(cfg)
    return layer.apply({"params": params["embed"]}, ids, positions, key, states)


def position_embeddings(
    params: Params, where: Positions, cfg: EncoderConfig, key: Key | None = None
) -> Array | None:
    """Rows [R, S, D] of the position table; None for an encoder without one.

    They are those that `embedded` adds with the same key.
    """
    if cfg.position != "learned":
        return None
    table = params["embed"]["position"]["embedding"].astype(cfg.compute_dtype)
    return table[table_rows(where, cfg, key)]
