"""Vectors that are embedded once, and then cut in several ways."""

from collections.abc import Callable, Sequence

import numpy as np

from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, MultiVectors


class VectorCache:
    """An embed function that remembers the vectors of its calls.

    Args:
        embed: Embed function that returns [N, ...], or `MultiVectors`.

    Attributes:
        calls: {(role, texts): [N, ...] or `MultiVectors`}, the vectors of all calls.
    """

    def __init__(self, embed: EmbedFn):
        self._embed = embed
        self.calls: dict[tuple[str, tuple[str, ...]], np.ndarray | MultiVectors] = {}

    def __call__(self, texts: Sequence[str], role: str) -> np.ndarray | MultiVectors:
        """The vectors of texts, embedded at the first call with these texts."""
        key = role, tuple(texts)
        # Evaluators of several sizes ask for the same texts
        if key not in self.calls:
            self.calls[key] = self._embed(texts, role)
        return self.calls[key]

    @property
    def width(self) -> int:
        """The width of the vectors."""
        return get_vectors(next(iter(self.calls.values()))).shape[-1]

    def stack(self) -> np.ndarray:
        """All vectors of all calls."""
        return np.concatenate(list(self.calls.values()))


def cut_embedder(
    embed: EmbedFn, select: Callable[[np.ndarray], np.ndarray], normalize: bool
) -> EmbedFn:
    """An embed function whose vectors are cut, and then scaled to length 1.

    Args:
        embed: Embed function that returns [N, ...] or `MultiVectors`, not normalized.
        select: Function [N, ...] -> [N, D].
        normalize: Whether the cut vectors are scaled to length 1.
    """

    def embed_cut(texts, role):
        # Of several vectors per text, all are cut alike
        vectors = embed(texts, role)
        x = select(get_vectors(vectors))
        x = l2_normalize_rows(x) if normalize else x
        is_multi = isinstance(vectors, MultiVectors)
        return vectors._replace(vectors=x) if is_multi else x

    return embed_cut


def cut_to_size(
    embed: EmbedFn, index: int, dim: int | None = None, normalize: bool = True
) -> EmbedFn:
    """The first `dim` values (all if None) of vectors [N, K, D] at a depth's index."""
    return cut_embedder(embed, lambda x: x[:, index, :dim], normalize)


def get_vectors(embeddings: np.ndarray | MultiVectors) -> np.ndarray:
    """The vectors [N, ...] of texts, or of all tokens or chunks of several texts."""
    if isinstance(embeddings, MultiVectors):
        embeddings = embeddings.vectors
    return np.asarray(embeddings)
