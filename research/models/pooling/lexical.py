"""Lexical poolings: weights of a vocabulary for a text (SPLADE, LENS, DupMAE)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.heads import apply_mlm_head, init_mlm_head, output_embeddings
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling, cls_pool, first_token_mask
from research.types import Array, Key, Params

KMEANS_BATCH_SIZE = 4_096  # rows of the token table


def cluster_centroids(table: Array, clusters: int, seed: int) -> Array:
    """Centroids of the rows of a table, by k-means on the host, also under jit.

    A centroid is the mean of all rows of its cluster, or the center that k-means found
    if the cluster is empty.

    Args:
        table: [V, D] embeddings of the tokens.
        clusters: K, the number of clusters.
        seed: int of scikit-learn's MiniBatchKMeans.

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
    # Mini-batch centers differ a little from the means of all rows: average again
    sizes = np.bincount(kmeans.labels_, minlength=clusters)[:, None]  # [K, 1]
    sums = np.zeros((clusters, rows.shape[1]), np.float64)
    np.add.at(sums, kmeans.labels_, rows)
    means = sums / np.maximum(sizes, 1)
    return np.where(sizes > 0, means, kmeans.cluster_centers_).astype(np.float32)


def pool_logits(
    tokens: Array,
    table: Array,
    bias: Array,
    mask: Array,
    reduce: Callable[[Array, Array], Array],
) -> Array:
    """A function of the logits of the tokens of each text.

    Args:
        tokens: [B, S, D] hidden states.
        table: [K, D] output embeddings.
        bias: [K] bias of the logits.
        mask: [B, M, S] bool, the tokens to pool for text m of the row.
        reduce: (logits [S, K] float32, mask [S]) -> [K].

    Returns:
        [B, M, K] float32; 0 for a text without tokens.
    """
    chex.assert_rank([tokens, mask], 3)

    def pool_row(logits, masks):  # [S, K], [M, S]
        def pool_text(mask):
            # Rows have places for more texts than they hold
            return jax.lax.cond(
                mask.any(), lambda: reduce(logits, mask), lambda: jnp.zeros(bias.shape)
            )

        return jax.lax.map(pool_text, masks)  # [M, K]

    return map_logits(pool_row, tokens, table, bias, mask)


def map_logits(
    fn: Callable[[Array, Array], Any],
    tokens: Array,
    table: Array,
    bias: Array,
    mask: Array,
) -> Any:
    """A function (logits [S, K] float32, mask [...]) -> arrays of each row, stacked.

    Args:
        fn: The function.
        tokens, table, bias: As in `pool_logits`.
        mask: [B, ...] the second argument of each row.
    """
    chex.assert_shape(table, (*bias.shape, tokens.shape[2]))

    def run_row(row):
        states, row_mask = row  # [S, D], [...]
        kernel = table.T.astype(states.dtype)
        logits = jnp.matmul(states, kernel, preferred_element_type=jnp.float32)
        return fn(logits + bias[None], row_mask)

    # One row at a time, so that [B, S, K] is never in memory
    return jax.lax.map(jax.checkpoint(run_row), (tokens, mask))


def max_logits(tokens: Array, table: Array, bias: Array, mask: Array) -> Array:
    """Maximum of the logits over the tokens of each text; as in `pool_logits`."""
    return pool_logits(tokens, table, bias, mask, _take_max)


def _take_max(logits: Array, mask: Array) -> Array:
    return jnp.where(mask[:, None], logits, -jnp.inf).max(0)


def lexicon(*, clusters: int = 4_000, seed: int = 0) -> LearnedPooling:
    """Scores of the clusters of a vocabulary for a text (LENS, Lei et al. 2025).

    The output embeddings, those of the tokens if they are tied, are clustered once, by
    k-means. The vector of a text is the maximum over its tokens of log(1 + relu(logit))
    for each centroid. Logits of a
    token are computed from its own state; the authors use the state before it, as in a
    causal language model.

    Args:
        clusters: K, the width of the embedding.
        seed: int of k-means.
    """

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del key
        if not 1 <= clusters <= cfg.vocab_size:
            raise ValueError(
                f"pool.clusters is {clusters}; allowed: 1 ... {cfg.vocab_size}, the "
                "rows of the token table"
            )
        table = output_embeddings(params)
        return {"centroids": cluster_centroids(table, clusters, seed)}

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        centroids = params["pooling"]["centroids"]
        maximum = max_logits(tokens, centroids, jnp.zeros(clusters), mask)
        # log(1 + relu(x)) is monotone, so it can be applied after the maximum
        return jnp.log1p(jax.nn.relu(maximum))

    return LearnedPooling(init, pool, width=lambda cfg: clusters)


def dupmae(*, dim: int = 384, top: int = 384) -> LearnedPooling:
    """Projected [CLS] state and a sparse bag of words (DupMAE, Xiao et al. 2023).

    The first `dim` components are a linear projection of the first token's state. Then
    follows one component per token of the vocabulary: the maximum logit over the text's
    other tokens if it is among the `top` largest, else 0. Dot products of these vectors
    are the paper's scores, except that the paper limits only passages to `top` words.
    The MLM head is that of the pre-training run if the run starts from one, else
    random.

    Args:
        dim: Output width of the linear layer.
        top: Number of vocabulary components that are kept.
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
        # [B, M, 1] the smallest logit that is kept
        threshold = jax.lax.top_k(words, top)[0][..., -1:]
        words = jnp.where(words >= threshold, words, 0.0)
        return jnp.concatenate([projected, words], -1)

    return LearnedPooling(
        init, pool, reuses_head=True, width=lambda cfg: dim + cfg.vocab_size
    )
