"""Rearrangements between tensors of a Hugging Face file and our parameters.

The weight of a linear layer is [out, in] in PyTorch and [in, out] here. Weights of
attention are [D, H, K] and [H, K, D] here, with H heads of K channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class WeightTransform(NamedTuple):
    """An invertible rearrangement of one or several of our parameters into one tensor.

    Attributes:
        hf_shape: Function (shapes of our parameters) -> shape of the file's tensor.
        read: Function (tensor of the file, shapes of our parameters) -> our parameters
            as views.
        write: Function (our parameters) -> tensor of the file.
    """

    hf_shape: Callable[..., Shape]
    read: Callable[..., tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]


def _transform_single(
    hf_shape: Callable[[Shape], Shape],
    read: Callable[[np.ndarray, Shape], np.ndarray],
    write: Callable[[np.ndarray], np.ndarray],
) -> WeightTransform:
    """The transform of a single parameter."""
    return WeightTransform(hf_shape, lambda x, shape: (read(x, shape),), write)


def _concatenate(single: WeightTransform, axis: int) -> WeightTransform:
    """Several parameters, transformed by `single`, one after another along `axis`."""

    def hf_shape(*shapes: Shape) -> Shape:
        parts = [single.hf_shape(shape) for shape in shapes]
        total = list(parts[0])
        total[axis] = sum(part[axis] for part in parts)
        return tuple(total)

    def read(x: np.ndarray, *shapes: Shape) -> tuple[np.ndarray, ...]:
        ends = np.cumsum([single.hf_shape(shape)[axis] for shape in shapes])
        parts = np.split(x, ends[:-1], axis)
        return tuple(
            single.read(part, shape)[0]
            for part, shape in zip(parts, shapes, strict=True)
        )

    def write(*params: np.ndarray) -> np.ndarray:
        return np.concatenate([single.write(x) for x in params], axis)

    return WeightTransform(hf_shape, read, write)


def _interleave_heads(single: WeightTransform) -> WeightTransform:
    """Several parameters, transformed by `single`, that alternate from head to head."""

    def num_heads(shape: Shape) -> int:
        return shape[-2]  # of a kernel [D, H, K] and of a bias [H, K]

    def hf_shape(*shapes: Shape) -> Shape:
        rows, *columns = single.hf_shape(shapes[0])
        return (len(shapes) * rows, *columns)

    def read(x: np.ndarray, *shapes: Shape) -> tuple[np.ndarray, ...]:
        part_shape = single.hf_shape(shapes[0])
        # [H, parameters, K, ...]
        x = x.reshape(num_heads(shapes[0]), len(shapes), -1, *part_shape[1:])
        parts = (part.reshape(part_shape) for part in np.moveaxis(x, 1, 0))
        return tuple(
            single.read(part, shape)[0]
            for part, shape in zip(parts, shapes, strict=True)
        )

    def write(*params: np.ndarray) -> np.ndarray:
        parts = [single.write(x) for x in params]
        columns = parts[0].shape[1:]
        # [H, K, ...] each, then [H, parameters, K, ...]
        parts = [x.reshape(num_heads(params[0].shape), -1, *columns) for x in parts]
        return np.stack(parts, axis=1).reshape(-1, *columns)

    return WeightTransform(hf_shape, read, write)


SAME = _transform_single(lambda s: s, lambda x, s: x, lambda x: x)
TRANSPOSE = _transform_single(lambda s: s[::-1], lambda x, s: x.T, lambda x: x.T)
# [D, H, K] <-> [D, H*K], and the bias [H, K] <-> [H*K]
FLAT = _transform_single(
    lambda s: (*s[:-2], s[-2] * s[-1]),
    lambda x, s: x.reshape(s),
    lambda x: x.reshape(*x.shape[:-2], -1),
)
# kernel [D, H, K] <-> weight [H*K, D]
HEADS_IN = _transform_single(
    lambda s: (s[1] * s[2], s[0]),
    lambda x, s: x.T.reshape(s),
    lambda x: x.reshape(len(x), -1).T,
)
# kernel [H, K, D] <-> weight [D, H*K]
HEADS_OUT = _transform_single(
    lambda s: (s[2], s[0] * s[1]),
    lambda x, s: x.T.reshape(s),
    lambda x: x.reshape(-1, x.shape[-1]).T,
)
# kernel [H, K, D] <-> weight [H*K, D]
FLAT_OUT = _transform_single(
    lambda s: (s[0] * s[1], s[2]),
    lambda x, s: x.reshape(s),
    lambda x: x.reshape(-1, x.shape[-1]),
)
# {name in weight_names.WEIGHT_NAMES: transform}
TRANSFORMS = {
    "same": SAME,
    "transpose": TRANSPOSE,
    "flat": FLAT,
    "heads_in": HEADS_IN,
    "heads_out": HEADS_OUT,
    "flat_out": FLAT_OUT,
    "fused_heads_in": _concatenate(HEADS_IN, 0),
    "fused_flat": _concatenate(FLAT, -1),
    "fused_transpose": _concatenate(TRANSPOSE, 0),
    "fused_same": _concatenate(SAME, 0),
    "heads_in_by_head": _interleave_heads(HEADS_IN),
    "flat_by_head": _interleave_heads(FLAT),
}
