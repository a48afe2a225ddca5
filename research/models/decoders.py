"""Decoders of masked-autoencoder pre-training, on packed rows."""

import dataclasses

import jax
import jax.numpy as jnp

from research.models import encoder
from research.models.attention.inputs import Kind, Surroundings, Turn, surroundings
from research.models.config import EncoderConfig
from research.models.layers import Block, Embedder, norm
from research.models.positions.learned import table_rows
from research.models.positions.segment_positions import Places
from research.models.token_ops import taken
from research.sharding import split_rows
from research.types import Array, Key, Params


def init_decoder(key: Key, cfg: EncoderConfig, depth: int) -> Params:
    """`depth` random blocks like the encoder's, with a final norm if it has one."""
    params = encoder.init(key, _shape(cfg, depth))
    return {name: params[name] for name in ("layers", "final_norm") if name in params}


def copied_decoder(params: Params, depth: int) -> Params:
    """A decoder that begins as a copy of the encoder's first `depth` blocks."""
    parts = {"layers": jax.tree.map(lambda x: x[:depth], params["layers"])}
    if "final_norm" in params:
        parts["final_norm"] = params["final_norm"]
    return jax.tree.map(jnp.array, parts)


def decoded(
    params: Params,
    decoder: Params,
    x: Array,
    where: Places,
    cfg: EncoderConfig,
    *,
    at: Array | None = None,
    memory: Array | None = None,
    sees: Array | None = None,
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
    if sees is not None:
        shape = dataclasses.replace(shape, attention="plain")
    keys = (None,) * (depth + 1) if key is None else jax.random.split(key, depth + 1)
    around = surroundings(params, where, shape, keys[depth])
    if sees is not None:
        around = around.seen(sees)
    for layer in range(depth):
        block = jax.tree.map(lambda w: w[layer], decoder["layers"])  # noqa: B023
        kind = Kind(None, None if cfg.first_norm else jnp.asarray(layer == 0))
        if layer == depth - 1 and at is not None and around.terms is not None:
            memory = x if memory is None else memory
            x, around, at = taken(x, at), _asked(around, at), None
        x = Block(shape).apply({"params": block}, x, around, kind, keys[layer], memory)
        x, memory = split_rows(x), None
    x = x if at is None else taken(x, at)
    if "final_norm" in decoder:
        x = norm(cfg, None).apply({"params": decoder["final_norm"]}, x)
    return x


def _shape(cfg: EncoderConfig, depth: int) -> EncoderConfig:
    """The shape of a decoder: every block sees its whole text."""
    return dataclasses.replace(cfg, depth=depth, local=(), window=0)


def _asked(around: Surroundings, at: Array) -> Surroundings:
    """The same for queries at the places [R, P] of the row only."""
    terms = around.terms
    bias = terms.bias
    if bias is not None:  # [1, H, S, S]
        bias = jnp.moveaxis(bias[0][:, at], 0, 1)
    terms = terms._replace(
        mask=taken(terms.mask, at),
        bias=bias,
        holds=tuple(taken(holds, at) for holds in terms.holds),
    )
    turns = tuple(
        Turn(tuple(taken(x, at) for x in turn.query), turn.key) for turn in around.turns
    )
    channels, factor = around.channels, around.factor
    if channels is not None:
        channels = (taken(channels[0], at), channels[1])
    if not isinstance(factor, float):
        factor = taken(factor, at)
    return around._replace(terms=terms, turns=turns, factor=factor, channels=channels)


def embedded(
    params: Params,
    ids: Array,
    where: Places,
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
    return layer.apply({"params": params["embed"]}, ids, where, key, states)


def raw_positions(
    params: Params, where: Places, cfg: EncoderConfig, key: Key | None = None
) -> Array | None:
    """Rows [R, S, D] of the position table; None for an encoder without one.

    They are those that `embedded` adds with the same key.
    """
    if cfg.position != "learned":
        return None
    table = params["embed"]["position"]["embedding"].astype(cfg.compute_dtype)
    return table[table_rows(where, cfg, key)]
