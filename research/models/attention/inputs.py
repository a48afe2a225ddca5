"""What the blocks of an encoder read besides the hidden states: it does not change."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models.attention.attend import whole_terms
from research.models.attention.dot_product import Terms, make_terms
from research.models.config import EncoderConfig
from research.models.positions import rope, seqpe
from research.models.positions.bias import RELATIVE
from research.models.positions.query_scale import query_factor
from research.models.positions.relative_rope import Relation, relation
from research.models.positions.segment_positions import Places, places
from research.types import Array, Key, Params


class Turn(NamedTuple):
    """Cosines and sines [B|1, S|1, 1|H, R/2] float32 for queries and for keys."""

    query: tuple[Array, Array]
    key: tuple[Array, Array]


class Surroundings(NamedTuple):
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

    places: Places
    relative: Params | None
    terms: Terms | None
    turns: tuple[Turn, ...]
    local_turn: Turn | None
    factor: Array | float
    channels: tuple[Array, Array] | None
    adapter: Array | None = None

    def seen(self, sees: Array) -> "Surroundings":
        """The same where each token looks only at what `sees` [B, S, S] says."""
        terms = self.terms._replace(mask=self.terms.mask & sees)
        return self._replace(terms=terms)


class Kind(NamedTuple):
    """What sets a block apart from the others, as data: [] bool, or None for nowhere.

    Attributes:
        local: the block sees its window only.
        first: it is the block whose attention reads its input as it is.
    """

    local: Array | None
    first: Array | None


class Past(NamedTuple):
    """What attention sees of tokens before those of a row.

    Attributes:
        key: [P, KV, E], rotated.
        v: [P, KV, D/H] values.
    """

    key: Array
    v: Array


def surroundings(
    params: Params,
    where: Places,
    cfg: EncoderConfig,
    key: Key | None,
    *,
    aligned: bool = True,
    adapter: Array | None = None,
) -> Surroundings:
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
    if cfg.relative == "seqpe":
        channels = seqpe.channels(params["relative"], cfg, where.position)
    factor = query_factor(cfg, where)
    if not isinstance(factor, float):
        factor = factor[:, :, None, None]
    relative = params.get("relative") if cfg.relative in RELATIVE else None
    return Surroundings(
        where,
        relative,
        whole_terms(cfg, relative, where, aligned=aligned),
        *_turns(params, where, cfg, how, key),
        factor,
        channels,
        adapter,
    )


def _turns(
    params: Params, where: Places, cfg: EncoderConfig, how: Relation, key: Key | None
) -> tuple[tuple[Turn, ...], Turn | None]:
    """The rotations of each branch of the relation, and that of local blocks."""
    if cfg.position != "rope":
        return (), None

    def turn(branch, position, turns, factor):
        sides = (branch.query, branch.key)
        return Turn(
            *(
                rope.cos_sin(side(position, turns), factor[:, :, None, None])
                for side in sides
            )
        )

    position = rope.training_position(cfg, where.position, key)
    turns = rope.turns(cfg, where.length, params.get("clex"), key)
    local = None
    if cfg.local:
        local = turn(
            relation(dataclasses.replace(cfg, extensions=())).branches[0],
            where.position,
            *rope.local_turns(cfg),
        )
    return tuple(turn(branch, position, *turns) for branch in how.branches), local


def kinds(cfg: EncoderConfig) -> Kind:
    """For each block what sets it apart: [L] bool."""
    first = None if cfg.first_norm else np.arange(cfg.depth) == 0
    return Kind(np.array(cfg.local) if cfg.local else None, first)


def later(where: Places, count: int) -> Places:
    """The places of tokens before which each text has `count` more."""
    real = where.segment != 0
    return Places(
        where.segment,
        jnp.where(real, where.position + count, 0),
        jnp.where(real, where.length + count, 0),
        where.index + count,
    )


def terms_after(cfg: EncoderConfig, where: Places, count: int) -> Terms:
    """The terms of the scores of tokens with the `count` before them and themselves."""
    before = jnp.ones((len(where.segment), count), jnp.int32)
    seen = jax.tree.map(
        lambda first, rest: jnp.concatenate([first, rest], 1), places(before), where
    )
    return make_terms(cfg, relation(cfg), None, where, seen)
