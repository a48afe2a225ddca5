"""Clusters of pairs of texts by k-means of their vectors, for batches of near pairs."""

import numpy as np

from research.progress import show_progress


def cluster_pairs(
    queries: np.ndarray,
    documents: np.ndarray | None = None,
    *,
    cluster_size: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Clusters pairs whose queries and documents are near each other's (CDE).

    K-means of the vectors [q; d] of all pairs, of length 1, with n / cluster_size
    clusters. The vectors [d; q] are clustered with them, so that two pairs are also
    near if the query of one is near the document of the other (Morris and Rush 2024,
    section 4.1). Clusters differ in size.

    Args:
        queries: [n, D] vectors of the queries.
        documents: [n, D] vectors of their documents; None clusters by queries alone.
        cluster_size: Mean number of pairs of a cluster.
        seed: Seed of the first centroids.

    Returns:
        [n] int32 number of each pair's cluster.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    points = _scale_to_unit(queries)  # [n, D]
    if documents is not None:
        pairs = [points, _scale_to_unit(documents)]
        points = np.concatenate(
            [np.concatenate(pairs, 1), np.concatenate(pairs[::-1], 1)]
        )  # [2n, 2D]
    count = -(-len(queries) // cluster_size)
    with show_progress(f"clustering {len(queries):,} pairs into {count:,} clusters"):
        means = KMeans(count, n_init=1, max_iter=100, random_state=seed)
        return means.fit_predict(points)[: len(queries)].astype(np.int32)


def _scale_to_unit(x: np.ndarray) -> np.ndarray:
    """[n, D] float32 vectors of length 1; zeros stay."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
