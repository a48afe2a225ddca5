"""Relative position remapping for RoPE: SelfExtend, DPE, LM-Infinite.

Rotary logits depend on the difference between the angles of query and key. The methods
here change this difference for some pairs of tokens, by several branches: a branch is a
rotation of queries and keys and the pairs of tokens whose logits use it.

Angles are uint32 fractions of a full rotation (see `rope`): products with positions
wrap around, which is exact arithmetic modulo one rotation. Dividing a position equals
dividing the frequency. In training, CLEX has float32 radians instead.
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
    """A rotation of queries and keys, and the pairs of tokens that use it.

    Attributes:
        query_angles: Function for the angles of queries, [B, S, 1|H, R/2] uint32.
        key_angles: Function for the angles of keys, [B, S, 1|KV, R/2] uint32.
        pair_mask: Function for the pairs whose logits use this branch; None in the
            first branch, which is used for all other pairs.
    """

    query_angles: AngleFn
    key_angles: AngleFn
    pair_mask: PairFn | None


class RelativeRemapping(NamedTuple):
    """The RoPE branches of attention, and a mask in addition to the usual one.

    Attributes:
        branches: Branches with disjoint pairs; the first has no `pair_mask`.
        visible: Function for the pairs that attend, in addition to the causal or other
            mask; None for all pairs.
    """

    branches: tuple[RopeBranch, ...]
    visible: PairFn | None = None


def relative_remapping(cfg: EncoderConfig) -> RelativeRemapping:
    """The remapping of the encoder's position methods; one plain branch without any."""
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
        """The branches and mask for an encoder."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupedRemapping(RemappingMethod):
    """Base class of SelfExtend and DPE: pairs at least a window apart are grouped.

    In bidirectional encoders, distances to later keys are mirrored (E5-RoPE of
    LongEmbed, Zhu et al. 2024).

    Attributes:
        window: w; pairs of tokens closer than this keep their distance.
        original: L0, the longest text in training; None for the model's `max_len`.
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
        """Largest number of tokens in a group."""
        raise NotImplementedError

    def max_context(self, cfg: EncoderConfig) -> int:
        """The longest text whose distances do not exceed L0: (L0 - w) g + w.

        Jin et al. 2024. For DPE, g is the largest group size; its authors use small
        groups for bands whose angles all occur in training.
        """
        return (self.original - self.window) * self.largest_group() + self.window

    def grouped_remapping(
        self, cfg: EncoderConfig, shift_angles: Callable, group_angles: Callable
    ) -> RelativeRemapping:
        """Makes branches: near pairs keep their positions, far pairs use groups.

        Args:
            cfg: The encoder's shape.
            shift_angles: Function for the grouped and shifted angles of the later
                token, an `AngleFn` with the argument `heads`.
            group_angles: The same for the grouped angles of the earlier token.
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

        # The later token is the query below the diagonal, and the key above it
        branches = [PLAIN_BRANCH, make_branch(shift_angles, group_angles, is_behind)]
        if not cfg.causal:
            branches.append(make_branch(group_angles, shift_angles, is_ahead))
        return RelativeRemapping(tuple(branches))


@dataclass(frozen=True, kw_only=True)
class SelfExtend(GroupedRemapping):
    """SelfExtend (Jin et al. 2024): distances of far tokens are counted in groups.

    Query i and key j < i have the distance i - j if it is below `window` (w), otherwise
    (i // g + w - w // g) - j // g. The division is integer division, as in the paper;
    later code of its authors uses true division.

    Attributes:
        group: g, the number of tokens in a group.
    """

    name = "self_extend"
    group: int = make_bounded_field(1)

    def largest_group(self) -> int:
        return self.group

    def remap(self, cfg: EncoderConfig) -> RelativeRemapping:
        # At distance w the grouped distance is w // g: add w - w // g
        shift = self.window - self.window // self.group

        def shift_angles(position_ids, angles, heads):
            return position_angles(position_ids // self.group + shift, angles)

        def group_angles(position_ids, angles, heads):
            return position_angles(position_ids // self.group, angles)

        return self.grouped_remapping(cfg, shift_angles, group_angles)


@dataclass(frozen=True, kw_only=True)
class DPE(GroupedRemapping):
    """DPE (Lu et al. 2025): each band of frequencies has its own group size.

    The rotated pairs of channels of a head are divided into equal bands, from the
    highest frequency down. In band i, tokens at least `window` (w) apart have the
    distance of the positions p / s_i + w - w / s_i of the query and p / s_i of the key,
    by true division. Only `key_dims` are remapped.

    Attributes:
        sizes: Group size s_i of each band; the paper has 8 bands.
        key_dims: Pairs of channels that are remapped, for each key head or once for all
            key heads, the same in all blocks (the paper chooses them per block); () for
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
            # Query heads use the pairs of their key head
            mask = np.repeat(key_mask, heads // cfg.num_kv_heads, axis=0)
            return jnp.where(mask[None, None], remapped, plain)

        def shift_angles(position_ids, angles, heads):
            # [B|1, S|1, R/2] angles per token, divided by the group sizes
            divided = divide(angles)
            # Angle of the shift w - w / s_i
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
        """[1, 1, R/2] uint32 group size of every pair of channels."""
        pairs, sizes = cfg.rotary_dim // 2, self.sizes
        if pairs % len(sizes):
            raise ValueError(
                f"dpe has {len(sizes)} sizes, which do not divide the {pairs} rotated "
                "pairs of a head into equal bands"
            )
        return np.repeat(np.asarray(sizes, np.uint32), pairs // len(sizes))[None, None]

    def _key_mask(self, cfg: EncoderConfig) -> np.ndarray:
        """[KV, R/2] bool, the pairs of channels that are remapped."""
        pairs, key_dims = cfg.rotary_dim // 2, self.key_dims
        if not key_dims:
            return np.ones((cfg.num_kv_heads, pairs), bool)
        # The same pairs for all key heads
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
    """LM-Infinite (Han et al. 2024): attention to the last tokens and to the first.

    A token attends to the last `window` tokens, including itself, and to the first
    `sinks` tokens of the text, whose distance is limited to `window`.

    Attributes:
        window: Number of last tokens; the length of the longest text in training.
        sinks: Number of first tokens that all tokens attend to.
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

        # Far pairs: the query at position `window` at most, the key at 0
        branches = (PLAIN_BRANCH, RopeBranch(saturate_angles, zero_angles, is_far))
        return RelativeRemapping(branches, is_visible)


def position_angles(position_ids: Array, angles: Array) -> Array:
    """[B, S, 1, R/2] angles of non-negative positions [B, S] int32."""
    return (position_ids.astype(angles.dtype)[..., None] * angles)[:, :, None]


# Plain RoPE: angles of the positions, for all pairs.
PLAIN_BRANCH = RopeBranch(position_angles, position_angles, None)
