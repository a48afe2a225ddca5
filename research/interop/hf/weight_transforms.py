"""How a tensor of a Hugging Face file becomes one or several of ours, and back.

PyTorch keeps a linear layer's weight as [out, in], we as [in, out], and those of
attention as [in, H, D/H] and [H, D/H, out].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Op(NamedTuple):
    """An invertible rearrangement of one or several of our tensors into one.

    Attributes:
        shape: (our shapes, one by one) -> the shape in the file.
        read: (tensor of the file, our shapes, one by one) -> ours, views of it.
        write: (ours, one by one) -> tensor of the file.
    """

    shape: Callable[..., Shape]
    read: Callable[..., tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]


def _single(
    shape: Callable[[Shape], Shape],
    read: Callable[[np.ndarray, Shape], np.ndarray],
    write: Callable[[np.ndarray], np.ndarray],
) -> Op:
    """An op of one tensor."""
    return Op(shape, lambda x, s: (read(x, s),), write)


def _joined(op: Op, axis: int) -> Op:
    """Several tensors, each rearranged by `op`, one after the other along `axis`."""

    def shape(*shapes: Shape) -> Shape:
        parts = [op.shape(s) for s in shapes]
        whole = list(parts[0])
        whole[axis] = sum(part[axis] for part in parts)
        return tuple(whole)

    def read(x: np.ndarray, *shapes: Shape) -> tuple[np.ndarray, ...]:
        ends = np.cumsum([op.shape(s)[axis] for s in shapes])
        parts = np.split(x, ends[:-1], axis)
        return tuple(op.read(part, s)[0] for part, s in zip(parts, shapes, strict=True))

    def write(*ours: np.ndarray) -> np.ndarray:
        return np.concatenate([op.write(x) for x in ours], axis)

    return Op(shape, read, write)


def _by_head(op: Op) -> Op:
    """Several tensors, each rearranged by `op`, that alternate from head to head."""

    def heads(shape: Shape) -> int:
        return shape[-2]  # of a kernel [D, H, D/H] as of a bias [H, D/H]

    def shape(*shapes: Shape) -> Shape:
        rows, *rest = op.shape(shapes[0])
        return (len(shapes) * rows, *rest)

    def read(x: np.ndarray, *shapes: Shape) -> tuple[np.ndarray, ...]:
        whole = op.shape(shapes[0])
        x = x.reshape(heads(shapes[0]), len(shapes), -1, *whole[1:])
        parts = (part.reshape(whole) for part in np.moveaxis(x, 1, 0))
        return tuple(op.read(part, s)[0] for part, s in zip(parts, shapes, strict=True))

    def write(*ours: np.ndarray) -> np.ndarray:
        parts = [op.write(x) for x in ours]
        rest = parts[0].shape[1:]
        parts = [x.reshape(heads(ours[0].shape), -1, *rest) for x in parts]
        return np.stack(parts, axis=1).reshape(-1, *rest)

    return Op(shape, read, write)


SAME = _single(lambda s: s, lambda x, s: x, lambda x: x)
TRANSPOSE = _single(lambda s: s[::-1], lambda x, s: x.T, lambda x: x.T)
# [D, H, D/H] <-> [D, H*D/H], and the bias [H, D/H] <-> [H*D/H]
FLAT = _single(
    lambda s: (*s[:-2], s[-2] * s[-1]),
    lambda x, s: x.reshape(s),
    lambda x: x.reshape(*x.shape[:-2], -1),
)
# kernel [D, H, D/H] <-> weight [H*D/H, D]
HEADS_IN = _single(
    lambda s: (s[1] * s[2], s[0]),
    lambda x, s: x.T.reshape(s),
    lambda x: x.reshape(len(x), -1).T,
)
# kernel [H, D/H, D] <-> weight [D, H*D/H]
HEADS_OUT = _single(
    lambda s: (s[2], s[0] * s[1]),
    lambda x, s: x.T.reshape(s),
    lambda x: x.reshape(-1, x.shape[-1]).T,
)
# kernel [H, D/H, D] <-> weight [H*D/H, D]
FLAT_OUT = _single(
    lambda s: (s[0] * s[1], s[2]),
    lambda x, s: x.reshape(s),
    lambda x: x.reshape(-1, x.shape[-1]),
)
OPS = {
    "same": SAME,
    "transpose": TRANSPOSE,
    "flat": FLAT,
    "heads_in": HEADS_IN,
    "heads_out": HEADS_OUT,
    "flat_out": FLAT_OUT,
    "joined_heads_in": _joined(HEADS_IN, 0),
    "joined_flat": _joined(FLAT, -1),
    "joined_transpose": _joined(TRANSPOSE, 0),
    "joined_same": _joined(SAME, 0),
    "heads_in_by_head": _by_head(HEADS_IN),
    "flat_by_head": _by_head(FLAT),
}
