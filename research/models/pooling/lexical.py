"""Poolings into the vocabulary: what words, or clusters of them, a text speaks of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.heads import apply_mlm_head, init_mlm_head
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling, cls_pool, first_token_mask
from research.types import Array, Key, Params

BATCH = 4_096  # rows of the token table that k-means reads at a time


def cluster_centroids(table: Array, clusters: int, seed: int) -> Array:
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


def max_logits(tokens: Array, table: Array, bias: Array, mask: Array) -> Array:
    """The largest of the logits of each text's tokens.

    Args:
        tokens: [B, S, D] states.
        table: [K, D].
        bias: [K].
        mask: [B, M, S] bool, the tokens of text m of the row.

    Returns:
        [B, M, K] float32; 0 for a text of no tokens.
    """

    def row(parts):
        states, masks = parts
        kernel = table.T.astype(states.dtype)
        logits = jnp.matmul(states, kernel, preferred_element_type=jnp.float32)
        logits += bias[None]

        def text(chosen):
            most = jnp.where(chosen[:, None], logits, -jnp.inf).max(0)
            return jnp.where(chosen.any(), most, 0.0)

        return jax.lax.map(text, masks)

    # One row at a time: [B, S, K] is never in memory.
    return jax.lax.map(jax.checkpoint(row), (tokens, mask))


def lexicon(*, clusters: int = 4_000, seed: int = 0) -> LearnedPooling:
    """Which clusters of the vocabulary a text speaks of (LENS, Lei et al. 2025).

    The token table's rows are clustered once, by k-means, and a text's vector is the
    largest log(1 + relu(logit)) of its tokens for the centroid of each cluster. The
    authors read the state before a token in its place; here, that of the token itself.

    Args:
        clusters: K, the width of the embedding.
        seed: of k-means.
    """

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del key
        if not 1 <= clusters <= cfg.vocab_size:
            raise ValueError(
                f"pool.clusters is {clusters}; allowed: 1 ... {cfg.vocab_size}, the rows of "
                "the token table"
            )
        table = params["embed"]["token"]["embedding"]
        return {"centroids": cluster_centroids(table, clusters, seed)}

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        centres = params["readout"]["centroids"]
        most = max_logits(tokens, centres, jnp.zeros(clusters), mask)
        # log1p after relu is monotone: the largest logit's is the largest.
        return jnp.log1p(jax.nn.relu(most))

    return LearnedPooling(init, pool, width=lambda cfg: clusters)


def dupmae(*, dim: int = 384, top: int = 384) -> LearnedPooling:
    """[CLS] made smaller, and the words that a text speaks of (Xiao et al. 2023).

    A vector is `dim` numbers, a linear layer of the first token's state, then one for
    each token of the vocabulary: the largest logit of the text's other tokens, where it
    is among the `top` largest, else 0. Dot products of vectors are the paper's scores,
    but that it cuts passages to their `top` words and queries not. The head that makes
    logits is that of the pre-training where the run starts from one, else random.

    Args:
        dim: of the linear layer.
        top: words that are kept.
    """

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        if not 1 <= top <= cfg.vocab_size:
            raise ValueError(
                f"pool.top is {top}; allowed: 1 ... {cfg.vocab_size}, the size of the "
                "vocabulary"
            )
        linear_key, head_key = jax.random.split(key)
        return {
            "linear": {"kernel": KERNEL_INIT(linear_key, (cfg.width, dim))},
            "head": params["head"]
            if "head" in params
            else init_mlm_head(head_key, cfg),
        }

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        readout = params["readout"]
        small = cls_pool(tokens, mask) @ readout["linear"]["kernel"]
        most = max_logits(
            apply_mlm_head(readout["head"], tokens, cfg),
            params["embed"]["token"]["embedding"],
            readout["head"]["bias"],
            mask & ~first_token_mask(mask),
        )
        least = jax.lax.top_k(most, top)[0][..., -1:]
        return jnp.concatenate([small, jnp.where(most >= least, most, 0.0)], -1)

    return LearnedPooling(
        init, pool, reuses_head=True, width=lambda cfg: dim + cfg.vocab_size
    )
