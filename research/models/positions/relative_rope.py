"""The distance that rotary attention sees between two tokens: SelfExtend and others.

Rotary scores depend on the difference of a query's and a key's angle. A method here
gives pairs of tokens other angles than those of their positions, by several branches:
each is a way to rotate queries and keys, and says which pairs of tokens it serves.

Angles are uint32 fractions of a turn (see `rope`): products with positions wrap, which
is exact arithmetic modulo one turn. Dividing a position is dividing the frequency. In
training CLEX gives float32 radians instead.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.types import Array

# (position [B, S] int32, turns [B|1, S|1, R/2] uint32) -> angles [B, S, 1|H, R/2]
Angles = Callable[[Array, Array], Array]
# (query position [B, q, 1], key position [B, 1, k]) -> [B, q, k] bool
Pairs = Callable[[Array, Array], Array]


class Branch(NamedTuple):
    """One way to rotate queries and keys, and the pairs of tokens that it serves.

    Attributes:
        query: (position [B, S] int32, turns [B|1, S|1, R/2] uint32) -> the angles of
            queries, [B, S, 1|H, R/2] uint32.
        key: the same for keys, [B, S, 1|KV, R/2].
        holds: (query position [B, q, 1], key position [B, 1, k]) -> [B, q, k] bool;
            None in the first branch, which serves the pairs that no other claims.
    """

    query: Angles
    key: Angles
    holds: Pairs | None


class Relation(NamedTuple):
    """The branches of an attention, which exclude each other, and a mask of its own.

    Attributes:
        branches: the first has no `holds`.
        visible: the pairs of tokens that see each other, where the causal or other
            mask allows it too; None for all.
    """

    branches: tuple[Branch, ...]
    visible: Pairs | None = None


def relation(cfg: EncoderConfig) -> Relation:
    """The relation among `cfg.extensions`; one plain branch where there is none.

    Raises:
        ValueError: there are two, or its arguments do not fit.
    """
    chosen = [row for row in cfg.position_methods if row[0] in RELATIONS]
    if len(chosen) > 1:
        names = " and ".join(name for name, _ in chosen)
        raise ValueError(f"{names} both say how far apart tokens are; choose one")
    if not chosen:
        return Relation((_plain(),))
    name, arguments = chosen[0]
    return RELATIONS[name](cfg, **dict(arguments))


def self_extend(
    cfg: EncoderConfig, *, group: int, window: int, original: int
) -> Relation:
    """SelfExtend (Jin et al. 2024): far tokens are as far apart as their groups.

    Query i and key j < i are i - j apart if that is below `window` (w), otherwise
    (i // g + w - w // g) - j // g. Bidirectional encoders take the mirrored distance
    ahead (E5-RoPE of LongEmbed, Zhu et al. 2024). Positions divide without remainder,
    as in the paper; later code of its authors divides exactly.

    Args:
        cfg: says whether attention is causal.
        group: g, tokens of a group.
        window: w, neighbours that keep their distance.
        original: L0, the longest text of the training.
    Raises:
        ValueError: the positions are not rotary, or an argument is out of range.
    """
    _check(cfg, "self_extend", window, original)
    _at_least_one("self_extend", "group", group)

    def shifted(position, turns, heads):
        return _angles(position // group + window - window // group, turns)

    def grouped(position, turns, heads):
        return _angles(position // group, turns)

    return _grouped(cfg, window, shifted, grouped)


def dpe(
    cfg: EncoderConfig,
    *,
    sizes: tuple[int, ...],
    window: int,
    original: int,
    key_dims: tuple[tuple[int, ...], ...] = (),
) -> Relation:
    """Dimension-wise positions (Lu et al. 2025, DPE): each frequency its own groups.

    The rotated pairs of a head, from the highest frequency down, make equal bands; in
    band i a token farther than `window` (w) is as far as with
    positions p / s_i + w - w / s_i of the query and p / s_i of the key, by true
    division. Only the key dimensions do so. Bidirectional encoders take the mirrored
    distance ahead, as SelfExtend's.

    Args:
        cfg: says whether attention is causal.
        sizes: s_i of each band; 8 in the paper, of a multiple of 8 pairs.
        window: w, neighbours that keep their distance.
        original: L0, the longest text of the training.
        key_dims: the pairs that take part, for each of the KV heads of keys or once for
            all of them, the same in all blocks (in the paper for each block); () for
            all. `key_pairs` chooses them.
    Raises:
        ValueError: the positions are not rotary, or an argument is out of range.
    """
    _check(cfg, "dpe", window, original)
    size = _band_sizes(cfg, sizes)
    chosen = _chosen(cfg, key_dims)

    def divided(turns):
        if turns.dtype == jnp.uint32:
            return turns // size
        return turns / size.astype(turns.dtype)

    def selected(angles, plain, heads):
        # Queries of one key head rotate the pairs that their key rotates.
        mask = np.repeat(chosen, heads // cfg.num_kv_heads, axis=0)[None, None]
        return jnp.where(mask, angles, plain) if key_dims else angles

    def shifted(position, turns, heads):
        few = divided(turns)
        offset = jnp.asarray(window, turns.dtype) * (turns - few)
        angles = _angles(position, few) + offset[:, :, None]
        return selected(angles, _angles(position, turns), heads)

    def grouped(position, turns, heads):
        angles = _angles(position, divided(turns))
        return selected(angles, _angles(position, turns), heads)

    return _grouped(cfg, window, shifted, grouped)


def lm_infinite(cfg: EncoderConfig, *, window: int, sinks: int = 10) -> Relation:
    """LM-Infinite (Han et al. 2024): the last tokens, and the first ones from afar.

    A token sees the last `window` tokens, itself among them, and the first `sinks`,
    whose distance grows no farther than `window`.

    Args:
        cfg: a causal encoder with rotary positions.
        window: tokens seen at their distance; the longest text of the training.
        sinks: tokens at the start of the text that all see.
    Raises:
        ValueError: the encoder is not causal or not rotary, or an argument is below 1.
    """
    if not cfg.causal:
        raise ValueError(
            "lm_infinite is for causal models, but this one sees both sides; "
            "self_extend and dpe are for both"
        )
    _check(cfg, "lm_infinite", window)
    _at_least_one("lm_infinite", "sinks", sinks)

    def saturated(position, turns):
        return _angles(jnp.minimum(position, window), turns)

    def unrotated(position, turns):
        return _angles(jnp.zeros_like(position), turns)

    def far(query, key):
        return query - key >= window

    def visible(query, key):
        return (query - key < window) | (key < sinks)

    return Relation((_plain(), Branch(saturated, unrotated, far)), visible)


def key_pairs(query: Array, key: Array, count: int) -> tuple[tuple[int, ...], ...]:
    """The pairs of each key head that carry most of its scores: `key_dims` of DPE.

    They are those of the largest mean |q_pair| * |k_pair| over all pairs of tokens of
    a calibration text, which rotation does not change.

    Args:
        query: [..., S, H, R] queries, in one block or several.
        key: [..., S, KV, R] keys.
        count: pairs of a head to choose; 48 of 64 in the paper.
    Returns:
        the chosen pairs of each of the KV heads, in order.
    Raises:
        ValueError: a head does not have so many pairs.
    """
    pairs = key.shape[-1] // 2
    if not 1 <= count <= pairs:
        raise ValueError(f"cannot choose {count} of the {pairs} pairs of a head")

    def lengths(x):  # [..., heads, R/2]: pair j is channels j and j + R/2
        x = np.asarray(x, np.float64)
        return np.hypot(x[..., :pairs], x[..., pairs:]).mean(-3)

    keys = lengths(key)
    queries = lengths(query).reshape(*keys.shape[:-1], -1, pairs).mean(-2)
    size = (queries * keys).reshape(-1, *keys.shape[-2:]).mean(0)
    chosen = np.sort(np.argsort(-size, axis=-1, kind="stable")[:, :count], axis=-1)
    return tuple(tuple(int(pair) for pair in head) for head in chosen)


def _grouped(
    cfg: EncoderConfig, window: int, shifted: Callable, grouped: Callable
) -> Relation:
    """Near pairs by their positions; of far ones the later token's is `shifted`.

    `shifted` and `grouped` are as `Angles` with a third argument, the heads.
    """

    def branch(query, key, holds):
        return Branch(
            partial(query, heads=cfg.num_heads),
            partial(key, heads=cfg.num_kv_heads),
            holds,
        )

    behind = branch(shifted, grouped, lambda query, key: query - key >= window)
    if cfg.causal:
        return Relation((_plain(), behind))
    ahead = branch(grouped, shifted, lambda query, key: key - query >= window)
    return Relation((_plain(), behind, ahead))


def _plain() -> Branch:
    return Branch(_angles, _angles, None)


def _angles(position: Array, turns: Array) -> Array:
    """[B, S, 1, R/2] angles of positions [B, S] int32, which are not negative."""
    return (position.astype(turns.dtype)[..., None] * turns)[:, :, None]


def _check(
    cfg: EncoderConfig, name: str, window: int, original: int | None = None
) -> None:
    if cfg.position != "rope":
        raise ValueError(
            f"{name} needs rotary positions; those of this model are {cfg.position!r}"
        )
    _at_least_one(name, "window", window)
    if original is not None and window > original:
        raise ValueError(
            f"{name}'s window {window} is longer than the {original} tokens that the "
            "model was trained on"
        )


def _check_tuple(name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise ValueError(f"dpe's {name} is {value!r}; it takes several whole numbers")


def _at_least_one(method: str, name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{method}'s {name} is {value!r}; it must be a whole number >= 1"
        )


def _band_sizes(cfg: EncoderConfig, sizes: tuple[int, ...]) -> np.ndarray:
    """[1, 1, R/2] uint32 group size of every pair."""
    pairs = cfg.rotated // 2
    _check_tuple("sizes", sizes)
    if not sizes or pairs % len(sizes):
        raise ValueError(
            f"dpe has {len(sizes)} sizes, which do not divide the {pairs} rotated "
            "pairs of a head into equal bands"
        )
    for size in sizes:
        _at_least_one("dpe", "sizes", size)
    return np.repeat(np.asarray(sizes, np.uint32), pairs // len(sizes))[None, None]


def _chosen(cfg: EncoderConfig, key_dims: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """[KV, R/2] bool, the pairs that take part."""
    pairs = cfg.rotated // 2
    if not key_dims:
        return np.ones((cfg.num_kv_heads, pairs), bool)
    _check_tuple("key_dims", key_dims)
    if not any(isinstance(dims, tuple) for dims in key_dims):
        key_dims = (key_dims,) * cfg.num_kv_heads
    if len(key_dims) != cfg.num_kv_heads:
        raise ValueError(
            f"dpe's key_dims are of {len(key_dims)} heads, but keys have {cfg.num_kv_heads}"
        )
    chosen = np.zeros((cfg.num_kv_heads, pairs), bool)
    for head, dims in enumerate(key_dims):
        _check_tuple("key_dims", dims)
        if outside := [pair for pair in dims if pair not in range(pairs)]:
            raise ValueError(
                f"dpe's key_dims name the pair {outside[0]}; "
                f"a head has 0 ... {pairs - 1}"
            )
        chosen[head, list(dims)] = True
    return chosen


def _self_extend_reach(cfg: EncoderConfig, arguments: Mapping[str, Any]) -> int:
    window, original = arguments["window"], arguments["original"]
    return (original - window) * arguments["group"] + window


def _dpe_reach(cfg: EncoderConfig, arguments: Mapping[str, Any]) -> int:
    group = int(_band_sizes(cfg, arguments["sizes"]).max())
    return _self_extend_reach(cfg, {**arguments, "group": group})


def _no_limit(cfg: EncoderConfig, arguments: Mapping[str, Any]) -> None:
    return None


RELATIONS = {"self_extend": self_extend, "dpe": dpe, "lm_infinite": lm_infinite}
# The longest text, in tokens, whose distances are not above L0: (L0 - w) g + w (Jin et
# al. 2024). DPE's is that of its largest groups: its authors leave some bands, whose
# turns were all seen in training, on small ones.
REACH = {"self_extend": _self_extend_reach, "dpe": _dpe_reach, "lm_infinite": _no_limit}
