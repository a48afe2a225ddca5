"""What the blocks of an encoder read besides the hidden states: it does not change."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models.attention.attend import dense_masks
from research.models.attention.dot_product import AttentionMasks, make_attention_masks
from research.models.config import EncoderConfig
from research.models.positions import rope, seqpe
from research.models.positions.bias import RELATIVE
from research.models.positions.query_scale import query_scale
from research.models.positions.relative_rope import Relation, relation
from research.models.positions.segment_positions import Positions, segment_positions
from research.types import Array, Key, Params


class CosSin(NamedTuple):
    """Cosines and sines [B|1, S|1, 1|H, R/2] float32 for queries and for keys."""

    query: tuple[Array, Array]
    key: tuple[Array, Array]


class AttentionInputs(NamedTuple):
    """What attention reads besides the hidden states; the same for every block.

    Attributes:
        places: where the tokens stand, [B, S].
        relative: the parameters of the attention bias; None without.
        terms: of the scores, for the attention that holds them whole; else None.
        turns: a rotation for each branch of the relation; () without rotary positions.
        local_turn: the rotation of local blocks; None without.
        factor: of the queries, besides `cfg.scale`: [B, S, 1, 1] or a float.
        channels: [B, S, H, E] appended to queries and to keys; None for nothing.
        adapter: [B, S] int32, the adapter of each token, -1 for none; None for the
            first one.
    """

    positions: Positions
    bias_params: Params | None
    masks: AttentionMasks | None
    rope: tuple[CosSin, ...]
    local_rope: CosSin | None
    query_scale: Array | float
    channels: tuple[Array, Array] | None
    adapter_ids: Array | None = None

    def restrict(self, sees: Array) -> "AttentionInputs":
        """The same where each token looks only at what `sees` [B, S, S] says."""
        terms = self.masks._replace(mask=self.masks.mask & sees)
        return self._replace(masks=terms)


class Kind(NamedTuple):
    """What sets a block apart from the others, as data: [] bool, or None for nowhere.

    Attributes:
        local: the block sees its window only.
        first: it is the block whose attention reads its input as it is.
    """

    local: Array | None
    first: Array | None


class PrefixKV(NamedTuple):
    """What attention sees of tokens before those of a row.

    Attributes:
        key: [P, KV, E], rotated.
        v: [P, KV, D/H] values.
    """

    key: Array
    value: Array


def make_attention_inputs(
    params: Params,
    where: Positions,
    cfg: EncoderConfig,
    key: Key | None,
    *,
    aligned: bool = True,
    adapter: Array | None = None,
) -> AttentionInputs:
    """What every block's attention reads; no block changes it.

    Args:
        params: as `init` makes them.
        where: the places of the tokens, [B, S].
        cfg: the encoder's shape.
        key: of training; None otherwise.
        aligned: whether the i-th tokens of all rows stand at the same place of theirs.
        adapter: [B, S] int32, as in `Surroundings`.
    """
    how = relation(cfg)
    channels = None
    if cfg.position_bias == "seqpe":
        channels = seqpe.channels(params["relative"], cfg, where.position_ids)
    factor = query_scale(cfg, where)
    if not isinstance(factor, float):
        factor = factor[:, :, None, None]
    relative = params.get("relative") if cfg.position_bias in RELATIVE else None
    return AttentionInputs(
        where,
        relative,
        dense_masks(cfg, relative, where, aligned=aligned),
        *_turns(params, where, cfg, how, key),
        factor,
        channels,
        adapter,
    )


def _turns(
    params: Params, where: Positions, cfg: EncoderConfig, how: Relation, key: Key | None
) -> tuple[tuple[CosSin, ...], CosSin | None]:
    """The rotations of each branch of the relation, and that of local blocks."""
    if cfg.position != "rope":
        return (), None

    def turn(branch, position, turns, factor):
        sides = (branch.query, branch.key)
        return CosSin(
            *(
                rope.cos_sin(side(position, turns), factor[:, :, None, None])
                for side in sides
            )
        )

    position = rope.training_position(cfg, where.position_ids, key)
    turns = rope.rope_angles(cfg, where.lengths, params.get("clex"), key)
    local = None
    if cfg.sliding_window_layers:
        local = turn(
            relation(dataclasses.replace(cfg, position_methods=())).branches[0],
            where.position_ids,
            *rope.local_rope_angles(cfg),
        )
    return tuple(turn(branch, position, *turns) for branch in how.branches), local


def kinds(cfg: EncoderConfig) -> Kind:
    """For each block what sets it apart: [L] bool."""
    first = None if cfg.first_norm else np.arange(cfg.depth) == 0
    return Kind(
        np.array(cfg.sliding_window_layers) if cfg.sliding_window_layers else None,
        first,
    )


def later(where: Positions, count: int) -> Positions:
    """The places of tokens before which each text has `count` more."""
    real = where.segment_ids != 0
    return Positions(
        where.segment_ids,
        jnp.where(real, where.position_ids + count, 0),
        jnp.where(real, where.lengths + count, 0),
        where.row_positions + count,
    )


def terms_after(cfg: EncoderConfig, where: Positions, count: int) -> AttentionMasks:
    """The terms of the scores of tokens with the `count` before them and themselves."""
    before = jnp.ones((len(where.segment_ids), count), jnp.int32)
    seen = jax.tree.map(
        lambda first, rest: jnp.concatenate([first, rest], 1),
        segment_positions(before),
        where,
    )
    return make_attention_masks(cfg, relation(cfg), None, where, seen)
