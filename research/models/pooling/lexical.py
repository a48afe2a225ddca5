"""Poolings into the vocabulary: the largest logits of a text (LENS, DupMAE)."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.heads import apply_mlm_head, init_mlm_head
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling, cls_pool, first_token_mask
from research.types import Array, Key, Params

KMEANS_BATCH_SIZE = 4_096  # rows of the token table


def cluster_centroids(table: Array, clusters: int, seed: int) -> Array:
    """Centroids of the rows of a token table, by k-means on the host, under jit too.

    A centroid is the mean of all rows of its cluster; k-means' center if it is empty.

    Args:
        table: [V, D].
        clusters: K.
        seed: Seed of scikit-learn's MiniBatchKMeans.

    Returns:
        [K, D] float32.
    """
    chex.assert_rank(table, 2)
    run_kmeans = partial(_run_kmeans, clusters=clusters, seed=seed)
    if isinstance(table, jax.core.Tracer):
        shape = jax.ShapeDtypeStruct((clusters, table.shape[1]), jnp.float32)
        return jax.pure_callback(run_kmeans, shape, table)
    return jnp.asarray(run_kmeans(table))


def _run_kmeans(table, *, clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    rows = np.asarray(table, np.float32)
    kmeans = MiniBatchKMeans(
        clusters, batch_size=KMEANS_BATCH_SIZE, n_init=1, random_state=seed
    ).fit(rows)
    # Mini-batches leave centers a little off the means of all rows: average again.
    sizes = np.bincount(kmeans.labels_, minlength=clusters)[:, None]  # [K, 1]
    sums = np.zeros((clusters, rows.shape[1]), np.float64)
    np.add.at(sums, kmeans.labels_, rows)
    means = sums / np.maximum(sizes, 1)
    return np.where(sizes > 0, means, kmeans.cluster_centers_).astype(np.float32)


def max_logits(tokens: Array, table: Array, bias: Array, mask: Array) -> Array:
    """Maximum over the tokens of each text of their logits.

    Args:
        tokens: [B, S, D] token states.
        table: [K, D] output embeddings.
        bias: [K].
        mask: [B, M, S] bool, the tokens of text m of the row.

    Returns:
        [B, M, K] float32; 0 for a text without tokens.
    """
    chex.assert_rank([tokens, mask], 3)
    chex.assert_shape(table, (*bias.shape, tokens.shape[2]))

    def pool_row(row):
        states, masks = row  # [S, D], [M, S]
        kernel = table.T.astype(states.dtype)
        logits = jnp.matmul(states, kernel, preferred_element_type=jnp.float32)
        logits += bias[None]  # [S, K]

        def pool_text(mask):
            maximum = jnp.where(mask[:, None], logits, -jnp.inf).max(0)
            return jnp.where(mask.any(), maximum, 0.0)

        return jax.lax.map(pool_text, masks)  # [M, K]

    # One row at a time: [B, S, K] is never in memory.
    return jax.lax.map(jax.checkpoint(pool_row), (tokens, mask))


def lexicon(*, clusters: int = 4_000, seed: int = 0) -> LearnedPooling:
    """Scores of clusters of the vocabulary for a text (LENS, Lei et al. 2025).

    The rows of the token table are clustered once, by k-means; the vector of a text is
    the largest log(1 + relu(logit)) of its tokens for each centroid. The authors read
    the logits of a token from the state before it, as a causal model does; here its own
    state is read.

    Args:
        clusters: K, the width of the embedding.
        seed: Seed of k-means.
    """

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del key
        if not 1 <= clusters <= cfg.vocab_size:
            raise ValueError(
                f"pool.clusters is {clusters}; allowed: 1 ... {cfg.vocab_size}, the "
                "rows of the token table"
            )
        table = params["embed"]["token"]["embedding"]
        return {"centroids": cluster_centroids(table, clusters, seed)}

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        centroids = params["pooling"]["centroids"]
        maximum = max_logits(tokens, centroids, jnp.zeros(clusters), mask)
        # log(1 + relu(x)) is monotone, so that it may follow the maximum.
        return jnp.log1p(jax.nn.relu(maximum))

    return LearnedPooling(init, pool, width=lambda cfg: clusters)


def dupmae(*, dim: int = 384, top: int = 384) -> LearnedPooling:
    """Projected [CLS] state and a sparse bag of words (DupMAE, Xiao et al. 2023).

    A vector is `dim` numbers, a linear layer of the first token's state, then one for
    each token of the vocabulary: the largest logit of the text's other tokens, if it is
    among the `top` largest, otherwise 0. Dot products of vectors are the paper's
    scores, except that the paper cuts only passages to their `top` words. The head that
    computes logits is that of the pre-training if the run starts from one, otherwise
    random.

    Args:
        dim: Width of the linear layer.
        top: Number of words that are kept.
    """

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        if not 1 <= top <= cfg.vocab_size:
            raise ValueError(
                f"pool.top is {top}; allowed: 1 ... {cfg.vocab_size}, the size of the "
                "vocabulary"
            )
        linear_key, head_key = jax.random.split(key)
        head = params["head"] if "head" in params else init_mlm_head(head_key, cfg)
        kernel = KERNEL_INIT(linear_key, (cfg.width, dim))
        return {"linear": {"kernel": kernel}, "head": head}

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        weights = params["pooling"]
        projected = cls_pool(tokens, mask) @ weights["linear"]["kernel"]  # [B, M, dim]
        words = max_logits(
            apply_mlm_head(weights["head"], tokens, cfg),
            params["embed"]["token"]["embedding"],
            weights["head"]["bias"],
            mask & ~first_token_mask(mask),
        )  # [B, M, V]
        threshold = jax.lax.top_k(words, top)[0][..., -1:]
        words = jnp.where(words >= threshold, words, 0.0)
        return jnp.concatenate([projected, words], -1)

    return LearnedPooling(
        init, pool, reuses_head=True, width=lambda cfg: dim + cfg.vocab_size
    )
