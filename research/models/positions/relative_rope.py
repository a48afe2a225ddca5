"""Relative position remapping for RoPE: SelfExtend, DPE, LM-Infinite.

Rotary logits depend on the difference of a query's and a key's angle. A method here
gives pairs of tokens other angles than those of their positions, by several branches:
each is a way to rotate queries and keys, for some of the pairs of tokens.

Angles are uint32 fractions of a turn (see `rope`): products with positions wrap, which
is exact arithmetic modulo one turn. Dividing a position is dividing the frequency. In
training CLEX gives float32 radians instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.positions.base import PositionMethod, make_bounded_field
from research.types import Array

# (positions [B, S] int32, angles per token [B|1, S|1, R/2] uint32)
# -> angles [B, S, 1|H, R/2]
AngleFn = Callable[[Array, Array], Array]
# (query positions [B, q, 1], key positions [B, 1, k]) -> [B, q, k] bool
PairFn = Callable[[Array, Array], Array]


class RopeBranch(NamedTuple):
    """One way to rotate queries and keys, and the pairs of tokens that it is for.

    Attributes:
        query_angles: Angles of queries, [B, S, 1|H, R/2] uint32.
        key_angles: Angles of keys, [B, S, 1|KV, R/2] uint32.
        pair_mask: The pairs that this branch scores; None in the first branch, which
            scores the pairs that no other branch does.
    """

    query_angles: AngleFn
    key_angles: AngleFn
    pair_mask: PairFn | None


class RelativeRemapping(NamedTuple):
    """The branches of an attention, which exclude each other, and a mask of its own.

    Attributes:
        branches: The first has no `pair_mask`.
        visible: The pairs of tokens that attend to each other, where the causal or
            other mask allows it too; None for all.
    """

    branches: tuple[RopeBranch, ...]
    visible: PairFn | None = None


def relative_remapping(cfg: EncoderConfig) -> RelativeRemapping:
    """The remapping by the encoder's position methods; else one plain branch."""
    for method in cfg.position_methods:
        if isinstance(method, RemappingMethod):
            return method.remap(cfg)
    return RelativeRemapping((PLAIN_BRANCH,))


@dataclass(frozen=True, kw_only=True)
class RemappingMethod(PositionMethod):
    """Base class of the methods that remap relative positions."""

    requires = "rope"

    @property
    def prefix_cacheable(self) -> bool:
        return False

    def conflicts_with(self, method: PositionMethod) -> bool:
        return isinstance(method, RemappingMethod)

    def check(self, cfg: EncoderConfig) -> None:
        self.remap(cfg)

    def remap(self, cfg: EncoderConfig) -> RelativeRemapping:
        """The branches for an encoder of this shape."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupedRemapping(RemappingMethod):
    """Base class of SelfExtend and DPE: pairs at least a window apart are grouped.

    Bidirectional encoders mirror the distance ahead (E5-RoPE of LongEmbed, Zhu et al.
    2024).

    Attributes:
        window: w, pairs of tokens nearer than this keep their distance.
        original: L0, the longest text of the training; None for the model's `max_len`.
    """

    window: int = make_bounded_field(1)
    original: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.original is not None and self.window > self.original:
            raise ValueError(
                f"{self.name}'s window {self.window} is longer than the {self.original}"
                " tokens that the model was trained on"
            )

    def largest_group(self) -> int:
        """The most tokens that one group holds."""
        raise NotImplementedError

    def max_context(self, cfg: EncoderConfig) -> int:
        """The longest text whose distances are not above L0: (L0 - w) g + w.

        Jin et al. 2024. DPE's is that of its largest groups: its authors leave some
        bands, whose angles were all in the training, on small ones.
        """
        return (self.original - self.window) * self.largest_group() + self.window

    def grouped_remapping(
        self, cfg: EncoderConfig, shift_angles: Callable, group_angles: Callable
    ) -> RelativeRemapping:
        """Near pairs by their positions; of far pairs the later token is shifted.

        Args:
            cfg: The encoder's shape.
            shift_angles: Angles of the later token, an `AngleFn` with the argument
                `heads`.
            group_angles: Angles of the earlier token.
        """

        def is_behind(query, key):
            return query - key >= self.window

        def is_ahead(query, key):
            return key - query >= self.window

        def make_branch(query_angles, key_angles, pair_mask):
            return RopeBranch(
                partial(query_angles, heads=cfg.num_heads),
                partial(key_angles, heads=cfg.num_kv_heads),
                pair_mask,
            )

        # The later token is the query behind the diagonal, and the key ahead of it.
        branches = [PLAIN_BRANCH, make_branch(shift_angles, group_angles, is_behind)]
        if not cfg.causal:
            branches.append(make_branch(group_angles, shift_angles, is_ahead))
        return RelativeRemapping(tuple(branches))


@dataclass(frozen=True, kw_only=True)
class SelfExtend(GroupedRemapping):
    """SelfExtend (Jin et al. 2024): far tokens are as far apart as their groups.

    Query i and key j < i are i - j apart if that is below `window` (w), otherwise
    (i // g + w - w // g) - j // g. Positions divide without remainder, as in the paper;
    later code of its authors divides exactly.

    Attributes:
        group: g, the number of tokens of a group.
    """

    name = "self_extend"
    group: int = make_bounded_field(1)

    def largest_group(self) -> int:
        return self.group

    def remap(self, cfg: EncoderConfig) -> RelativeRemapping:
        shift = self.window - self.window // self.group

        def shift_angles(position_ids, angles, heads):
            return position_angles(position_ids // self.group + shift, angles)

        def group_angles(position_ids, angles, heads):
            return position_angles(position_ids // self.group, angles)

        return self.grouped_remapping(cfg, shift_angles, group_angles)


@dataclass(frozen=True, kw_only=True)
class DPE(GroupedRemapping):
    """Dimension-wise positions (Lu et al. 2025, DPE): each frequency its own groups.

    The rotated pairs of a head, from the highest frequency down, make equal bands; in
    band i a token farther than `window` (w) is as far as with positions
    p / s_i + w - w / s_i of the query and p / s_i of the key, by true division. Only
    the key dimensions do so.

    Attributes:
        sizes: s_i of each band; 8 in the paper, multiples of 8 pairs.
        key_dims: The pairs that take part, for each of the KV heads of keys or once for
            all of them, the same in all blocks (in the paper for each block); () for
            all.
    """

    name = "dpe"
    sizes: tuple[int, ...]
    key_dims: tuple[tuple[int, ...], ...] | tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(
                f"dpe's sizes are {self.sizes}; each must be a whole number >= 1"
            )

    def largest_group(self) -> int:
        return max(self.sizes)

    def remap(self, cfg: EncoderConfig) -> RelativeRemapping:
        sizes = self._band_sizes(cfg)  # [1, 1, R/2]
        key_mask = self._key_mask(cfg)  # [KV, R/2]

        def divide(angles):
            if angles.dtype == jnp.uint32:
                return angles // sizes
            return angles / sizes.astype(angles.dtype)

        def select_key_dims(remapped, plain, heads):
            if not self.key_dims:
                return remapped
            # Queries of one key head rotate the pairs that their key rotates.
            mask = np.repeat(key_mask, heads // cfg.num_kv_heads, axis=0)
            return jnp.where(mask[None, None], remapped, plain)

        def shift_angles(position_ids, angles, heads):
            divided = divide(angles)
            shift = jnp.asarray(self.window, angles.dtype) * (angles - divided)
            remapped = position_angles(position_ids, divided) + shift[:, :, None]
            return select_key_dims(
                remapped, position_angles(position_ids, angles), heads
            )

        def group_angles(position_ids, angles, heads):
            remapped = position_angles(position_ids, divide(angles))
            return select_key_dims(
                remapped, position_angles(position_ids, angles), heads
            )

        return self.grouped_remapping(cfg, shift_angles, group_angles)

    def _band_sizes(self, cfg: EncoderConfig) -> np.ndarray:
        """[1, 1, R/2] uint32 group size of every pair."""
        pairs, sizes = cfg.rotary_dim // 2, self.sizes
        if pairs % len(sizes):
            raise ValueError(
                f"dpe has {len(sizes)} sizes, which do not divide the {pairs} rotated "
                "pairs of a head into equal bands"
            )
        return np.repeat(np.asarray(sizes, np.uint32), pairs // len(sizes))[None, None]

    def _key_mask(self, cfg: EncoderConfig) -> np.ndarray:
        """[KV, R/2] bool, the pairs that take part."""
        pairs, key_dims = cfg.rotary_dim // 2, self.key_dims
        if not key_dims:
            return np.ones((cfg.num_kv_heads, pairs), bool)
        if not isinstance(key_dims[0], tuple):
            key_dims = (key_dims,) * cfg.num_kv_heads
        if len(key_dims) != cfg.num_kv_heads:
            raise ValueError(
                f"dpe's key_dims are for {len(key_dims)} heads, but keys have "
                f"{cfg.num_kv_heads}"
            )
        mask = np.zeros((cfg.num_kv_heads, pairs), bool)
        for head, dims in enumerate(key_dims):
            if outside := [pair for pair in dims if pair not in range(pairs)]:
                raise ValueError(
                    f"dpe's key_dims name the pair {outside[0]}; "
                    f"a head has 0 ... {pairs - 1}"
                )
            mask[head, list(dims)] = True
        return mask


@dataclass(frozen=True, kw_only=True)
class LMInfinite(RemappingMethod):
    """LM-Infinite (Han et al. 2024): the last tokens, and the first ones from afar.

    A token attends to the last `window` tokens, itself among them, and to the first
    `sinks`, whose distance grows no farther than `window`.

    Attributes:
        window: Number of tokens attended to at their distance; the longest text of the
            training.
        sinks: Number of tokens at the start of the text that all attend to.
    """

    name = "lm_infinite"
    bounded = False
    window: int = make_bounded_field(1)
    sinks: int = make_bounded_field(1, 10)

    def remap(self, cfg: EncoderConfig) -> RelativeRemapping:
        if not cfg.causal:
            raise ValueError(
                "lm_infinite is for causal models, but this one attends to both sides; "
                "self_extend and dpe are for both"
            )

        def saturate_angles(position_ids, angles):
            return position_angles(jnp.minimum(position_ids, self.window), angles)

        def zero_angles(position_ids, angles):
            return position_angles(jnp.zeros_like(position_ids), angles)

        def is_far(query, key):
            return query - key >= self.window

        def is_visible(query, key):
            return (query - key < self.window) | (key < self.sinks)

        branches = (PLAIN_BRANCH, RopeBranch(saturate_angles, zero_angles, is_far))
        return RelativeRemapping(branches, is_visible)


def position_angles(position_ids: Array, angles: Array) -> Array:
    """[B, S, 1, R/2] angles of positions [B, S] int32, which are not negative."""
    return (position_ids.astype(angles.dtype)[..., None] * angles)[:, :, None]


# Pairs of tokens by their positions.
PLAIN_BRANCH = RopeBranch(position_angles, position_angles, None)
