"""Vectors that are embedded once, and then cut in several ways."""

from collections.abc import Callable, Sequence

import numpy as np

from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn


class VectorCache:
    """An embed function that remembers the vectors of its calls.

    Args:
        embed: Embed function that returns [N, ...].

    Attributes:
        calls: {(role, texts): [N, ...]}, the vectors of all calls.
    """

    def __init__(self, embed: EmbedFn):
        self._embed = embed
        self.calls: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def __call__(self, texts: Sequence[str], role: str) -> np.ndarray:
        """The vectors [N, ...], embedded at the first call with these texts."""
        key = role, tuple(texts)
        if key not in self.calls:
            self.calls[key] = np.asarray(self._embed(texts, role))
        return self.calls[key]

    def stack(self) -> np.ndarray:
        """All vectors of all calls."""
        return np.concatenate(list(self.calls.values()))


def cut_embedder(
    embed: EmbedFn, select: Callable[[np.ndarray], np.ndarray], normalize: bool
) -> EmbedFn:
    """An embed function whose vectors are cut, and then scaled to length 1.

    Args:
        embed: Embed function that returns [N, ...], not normalized.
        select: Function [N, ...] -> [N, D].
        normalize: Whether the cut vectors are scaled to length 1.
    """

    def embed_cut(texts, role):
        x = select(embed(texts, role))
        return l2_normalize_rows(x) if normalize else x

    return embed_cut


def cut_to_size(
    embed: EmbedFn, index: int, dim: int | None = None, normalize: bool = True
) -> EmbedFn:
    """The first `dim` values (all if None) of vectors [N, K, D] at a depth's index."""
    return cut_embedder(embed, lambda x: x[:, index, :dim], normalize)
