"""Token pooling: similar vectors of a document become one (Clavié et al. 2024)."""

import chex
import numpy as np

from research.transforms.normalize import l2_normalize_rows
from research.types import MultiVectors


def pool_tokens(
    texts: MultiVectors,
    *,
    factor: float,
    protected: int = 1,
    normalize: bool = True,
) -> MultiVectors:
    """The vectors of each text, with clusters of similar ones as their means.

    The clusters are those of Ward's method on cosine distances, as in
    sentence-transformers (HierarchicalTokenPooling).

    Args:
        texts: The vectors of the tokens of N documents.
        factor: Number of vectors that become one, on average; 1 or more.
        protected: Number of first vectors of each text that stay as they are, such as
            that of [CLS].
        normalize: Whether all vectors are scaled to length 1 afterwards.

    Raises:
        ValueError: The factor is below 1, or `protected` negative.
    """
    if factor < 1 or protected < 0:
        raise ValueError(
            f"token pooling by the factor {factor} with {protected} protected vectors: "
            "the factor is 1 or more, and no number is negative"
        )
    parts = [
        cluster_vectors(np.asarray(texts.vectors[start:stop]), factor, protected)
        for start, stop in zip(texts.offsets[:-1], texts.offsets[1:], strict=True)
    ]
    vectors = np.concatenate(parts)
    offsets = np.cumsum([0, *map(len, parts)])
    return MultiVectors(l2_normalize_rows(vectors) if normalize else vectors, offsets)


def cluster_vectors(vectors: np.ndarray, factor: float, protected: int) -> np.ndarray:
    """The vectors [T, D] of a text with the means of its clusters, [P, D]."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    chex.assert_rank(vectors, 2)
    first, vectors = vectors[:protected], vectors[protected:]
    count = max(int(len(vectors) / factor), 1)
    if count >= len(vectors):
        return np.concatenate([first, vectors])
    # Cosine distances, from which Ward's method makes its own
    unit = l2_normalize_rows(vectors)
    distances = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "ward")
    labels = fcluster(tree, count, "maxclust") - 1  # [T] from 0
    # Means of clusters, in the order of their numbers
    sizes = np.bincount(labels)
    sums = np.zeros((len(sizes), vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    return np.concatenate([first, sums / sizes[:, None].astype(np.float32)])
