"""A text as strengths of clusters of the vocabulary (LENS, Lei et al. 2025)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.structs import Array

BATCH = 4_096  # rows of the token table that k-means reads at a time


def centroids(table: Array, clusters: int, seed: int) -> Array:
    """[K, D] float32 means of the clusters of the rows of a table [V, D].

    Clusters are scikit-learn's MiniBatchKMeans'; a centroid is the mean of all rows of
    its cluster, or where it has none, what k-means found. Runs on the host, under a jit
    too.
    """
    shape = jax.ShapeDtypeStruct((clusters, table.shape[1]), jnp.float32)
    if isinstance(table, jax.core.Tracer):
        return jax.pure_callback(
            partial(_centroids, clusters=clusters, seed=seed), shape, table
        )
    return jnp.asarray(_centroids(table, clusters=clusters, seed=seed))


def _centroids(table, *, clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    rows = np.asarray(table, np.float32)
    found = MiniBatchKMeans(
        clusters, batch_size=BATCH, n_init=1, random_state=seed
    ).fit(rows)
    label = found.labels_
    size = np.bincount(label, minlength=clusters)
    total = np.zeros((clusters, rows.shape[1]), np.float64)
    np.add.at(total, label, rows)
    means = total / np.maximum(size, 1)[:, None]
    return np.where(size[:, None] > 0, means, found.cluster_centers_).astype("f4")


def strengths(tokens: Array, centres: Array, mask: Array) -> Array:
    """The largest log(1 + relu(logit)) of the tokens of each text, for each cluster.

    Args:
        tokens: [B, S, D] states.
        centres: [K, D].
        mask: [B, M, S] bool, the tokens of text m of the row.

    Returns:
        [B, M, K] float32, none negative; 0 for a text of no tokens.
    """

    def row(parts):
        states, masks = parts
        logits = jnp.matmul(
            states, centres.T.astype(states.dtype), preferred_element_type=jnp.float32
        )
        # log1p after relu is monotone: the largest logit's is the largest.
        return jax.lax.map(
            lambda chosen: jnp.where(chosen[:, None], logits, 0.0).max(0), masks
        )

    # One row at a time: [B, S, K] is never in memory.
    most = jax.lax.map(jax.checkpoint(row), (tokens, mask))
    return jnp.log1p(jax.nn.relu(most))
