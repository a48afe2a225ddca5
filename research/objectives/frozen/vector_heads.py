"""Objectives of heads over frozen vectors: any head, and sparse autoencoders (CSR).

The encoder runs forward alone or, with the vectors that launch.embed wrote, not at all:
epochs over vectors then take seconds.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research import sharding
from research.losses.regularizers import sparsity_metrics
from research.models import encoder
from research.models.config import EncoderConfig
from research.models.pooling import registry
from research.models.pooling.basic import LearnedPooling
from research.models.pooling.vector_heads import compute_latents, select_latents
from research.objectives.contrastive import ranking_metrics
from research.objectives.frozen.teacher import embed_pairs
from research.objectives.inputs import reads_pairs
from research.objectives.masked_prediction import init_params
from research.types import (
    Array,
    Batch,
    Key,
    LossOutput,
    Metrics,
    Objective,
    Params,
    Pool,
    SizeLoss,
    TeacherTexts,
    Tokens,
    max_segments,
)

ACTIVE = 1e-5  # a latent above is active


@reads_pairs
def vector_head(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    stored: bool = False,
    micro_batch: int = 0,
) -> Objective:
    """Contrasts what a pooling makes of another pooling's vectors, which stay.

    Args:
        cfg: The encoder's shape.
        pool: A pooling that maps vectors, such as `bebr`.
        size_loss: A loss of the last layer.
        stored: Whether the vectors are those of `teacher`, which launch.embed wrote
            with the same model, at length 1; the encoder is then not run.
        micro_batch: Most pairs that each device encodes at a time; 0 for all.

    Returns:
        An Objective whose batches are Batch.

    Raises:
        ValueError: The pooling maps no vectors, or the loss is one of all layers.
    """
    _check_parts(pool, size_loss)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, _ = init_params(key, cfg, encoder_params, mlm_head=False)
        pool_key = jax.random.fold_in(key, 2)
        params["encoder"] = registry.add_pooling_params(
            pool_key, params["encoder"], cfg, pool
        )
        return params, {}

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        del frozen
        q, d = take_vectors(params, batch, cfg, pool, stored, micro_batch)
        return LossOutput(*compare_pairs(params, batch, key, q, d))

    def compare_pairs(params, batch: Batch, key: Key, q: Array, d: Array):
        weights = params["encoder"]["pooling"]
        q, d = (pool.encode_vectors(weights, x) for x in (q, d))
        labels = batch.labels
        if stored:  # the vectors were inputs, and are no teacher's
            labels = labels._replace(query_vector=None, document_vector=None)
        return sharding.map_over_data(compute_loss, q, d, labels, key)

    def compute_loss(q, d, labels, key) -> tuple[Array, Metrics]:
        losses, metrics = size_loss.loss(q, d, labels, key)
        metrics = {**metrics, **ranking_metrics(q, d)}
        if pool.kind == "sparse":
            metrics |= sparsity_metrics(q, d)
        return losses.mean(), metrics

    return Objective(init, loss)


@reads_pairs
def sparse_autoencoder(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    k: int = 32,
    contrast_weight: float = 0.1,
    dead_weight: float = 1 / 32,
    dead_latents: int = 512,
    dead_after: int = 30,
    stored: bool = False,
    micro_batch: int = 0,
) -> Objective:
    """Reconstructs frozen vectors from sparse latents, and contrasts these (CSR).

    Wen et al. 2025: the mean square error with k latents, an eighth of that with 4 k,
    the error that dead latents leave of the first one's residual, relative to the
    spread of it, and a contrastive loss of the latents.

    Args:
        cfg: The encoder's shape.
        pool: The pooling `csr`.
        size_loss: The contrastive loss.
        k: Number of latents, as in the pooling.
        contrast_weight: Weight of the contrastive loss.
        dead_weight: Weight of the dead latents' loss.
        dead_latents: Most dead latents of a text that explain its residual.
        dead_after: Number of steps without a text, after which a latent is dead.
        stored: As in `vector_head`.
        micro_batch: As in `vector_head`.

    Raises:
        ValueError: As in `vector_head`, or the pooling is not sparse.
    """
    # Its vectors are always in the labels, so that they are computed once
    head = vector_head(cfg, pool, size_loss, stored=True)
    if pool.kind != "sparse":
        raise ValueError("objective sparse_autoencoder needs the pooling csr")
    latents = pool.width(cfg)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, _ = head.init(key, encoder_params)
        return params, {"idle_steps": jnp.zeros(latents, jnp.int32)}

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        q, d = take_vectors(params, batch, cfg, pool, stored, micro_batch)
        labels = batch.labels._replace(query_vector=q, document_vector=d)
        contrast, metrics, _ = head.loss(params, {}, batch._replace(labels=labels), key)
        x = jnp.concatenate([q, d])
        value, idle, own = compute_autoencoder_loss(
            params["encoder"]["pooling"],
            x,
            frozen["idle_steps"],
            k=k,
            dead_weight=dead_weight,
            dead_latents=min(dead_latents, latents),
            dead_after=dead_after,
        )
        metrics = {**metrics, **own, "contrast": contrast}
        value += contrast_weight * contrast
        return LossOutput(value, metrics, {"idle_steps": idle})

    return Objective(init, loss)


def compute_autoencoder_loss(
    weights: Params,
    x: Array,
    idle_steps: Array,
    *,
    k: int,
    dead_weight: float,
    dead_latents: int,
    dead_after: int,
) -> tuple[Array, Array, Metrics]:
    """The loss of a sparse autoencoder with tied weights.

    Args:
        weights: {"kernel": [D, H], "bias": [H], "center": [D]}.
        x: [N, D] vectors.
        idle_steps: [H] int32 steps since each latent was active.
        k, dead_weight, dead_latents, dead_after: As in `sparse_autoencoder`.

    Returns:
        The loss [], the next idle steps [H], and metrics.
    """

    def measure_error(z: Array, target: Array) -> tuple[Array, Array]:
        decoded = jnp.matmul(
            z, weights["kernel"].T, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.mean(jnp.square(decoded - target)), decoded

    # [N, H] latents, with k of them and with 4 k
    a = compute_latents(weights, x)
    centered = x - jnp.broadcast_to(weights["center"], x.shape)
    z = select_latents(a, k)
    error, decoded = measure_error(z, centered)
    wide_error, _ = measure_error(select_latents(a, min(4 * k, a.shape[1])), centered)

    # What the dead latents explain of the residual, [N, D]
    residual = jax.lax.stop_gradient(centered - decoded)
    is_dead = idle_steps > dead_after
    dead = jnp.where(jnp.broadcast_to(is_dead, a.shape), a, 0.0)
    dead_error, _ = measure_error(select_latents(dead, dead_latents), residual)
    mean = jnp.mean(residual, axis=0, keepdims=True)
    spread = jnp.mean(jnp.square(residual - mean))
    dead_error = jnp.where(is_dead.any() & (spread > 0), dead_error / spread, 0.0)

    # Latents that no text of the batch has
    is_active = (jax.lax.stop_gradient(z) > ACTIVE).any(0)
    idle_steps = jnp.where(is_active, 0, idle_steps + 1)
    total_spread = jnp.mean(jnp.square(x - jnp.mean(x, axis=0, keepdims=True)))
    metrics = {
        "unexplained_variance": error / total_spread,
        "dead_latents": jnp.mean(is_dead.astype(jnp.float32)),
    }
    value = error + wide_error / 8 + dead_weight * dead_error
    return value, idle_steps, metrics


def take_vectors(
    params: Params,
    batch: Batch,
    cfg: EncoderConfig,
    pool: LearnedPooling,
    stored: bool,
    micro_batch: int,
) -> tuple[Array, Array]:
    """The vectors of a batch's queries [B, D] and documents [B*K, D], not trained.

    Args:
        params: The objective's parameters.
        batch: The batch; with `stored`, its labels have the vectors.
        cfg: The encoder's shape.
        pool: Pooling that maps the vectors of its base.
        stored: Whether the labels have the vectors.
        micro_batch: As in `vector_head`.

    Raises:
        ValueError: The labels have no vectors, or such of another width.
    """
    labels = batch.labels
    if stored:
        vectors = labels.query_vector, labels.document_vector
        _check_stored(vectors, cfg.width)
        return vectors
    texts = TeacherTexts(batch.tokens, batch.query_index, batch.document_index)
    embed = _make_embed(cfg, pool.base)
    return embed_pairs(embed, params["encoder"], texts, micro_batch)


def _make_embed(cfg: EncoderConfig, base: Pool) -> Callable[[Params, Tokens], Array]:
    """(encoder's parameters, tokens [R, S]) -> [R*M, D], without dropout."""

    def embed(params: Params, tokens: Tokens) -> Array:
        texts_per_row = max_segments(tokens.token_ids.shape[1])
        return encoder.encode(params, tokens, cfg, base, max_segments=texts_per_row)

    return embed


def _check_parts(pool: Pool | LearnedPooling, size_loss: SizeLoss) -> None:
    """Raises ValueError if the pooling maps no vectors, or the loss needs layers."""
    if not isinstance(pool, LearnedPooling) or pool.encode_vectors is None:
        raise ValueError("this objective needs a pooling that maps vectors: csr, bebr")
    if size_loss.needs_all_layers:
        raise ValueError("this objective has the last layer alone, not all layers")


def _check_stored(vectors: tuple[Array | None, Array | None], width: int) -> None:
    """Raises ValueError unless there are vectors of this width of both sides."""
    if any(x is None or x.shape[1] != width for x in vectors):
        raise ValueError(
            f"objective.stored needs vectors of {width} dims of queries and documents: "
            "set teacher to vectors(queries=FILE, documents=FILE)"
        )
