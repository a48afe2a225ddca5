"""Training objectives: an encoder and a loss put together."""

import jax
import jax.numpy as jnp

from research.losses.similarity import cosine
from research.models import encoder
from research.models.config import EncoderConfig
from research.models.pooling import basic, registry
from research.models.positions.bias import position_penalty
from research.objectives.gradcache import encode_in_chunks, num_chunks
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
    max_segments,
)


def contrastive(
    cfg: EncoderConfig,
    pool: Pool | basic.LearnedPooling,
    nested: SizeLoss,
    *,
    micro_batch: int = 0,
    head: str = "none",
) -> Objective:
    """Contrasts the queries of a batch with its documents, at every size that is asked.

    Args:
        cfg: the encoder's shape.
        pool: one of `BASIC_POOLINGS`, or a LearnedPooling, whose
            parameters are trained too, and dropped where the pooling has none.
        nested: a loss over sizes, from `nested.NESTED`.
        micro_batch: pairs that are encoded at a time; 0 encodes all at once. The
            gradient is that of the whole batch (GradCache, Gao et al. 2021).
        head: 'tanh' puts a dense layer with tanh over the pooled vector in training
            only (SimCSE, Gao et al. 2021, section 3), 'none' nothing.

    Positions by SeqPE add their penalty to the loss.

    Returns:
        an Objective of batches of type Batch.

    Raises:
        ValueError: the head is neither.
    """
    if head not in ("none", "tanh"):
        raise ValueError(f"objective.head is {head!r}; allowed: none, tanh")

    def init(key: Key, start: Params | None = None) -> tuple[Params, Params]:
        start = encoder.init(key, cfg) if start is None else start
        readout_key = jax.random.fold_in(key, 2)
        params = {"encoder": registry.add_pooling_params(readout_key, start, cfg, pool)}
        if head == "tanh":
            shape = (cfg.width, cfg.width)
            kernel = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), shape)
            params["head"] = {"kernel": kernel, "bias": jnp.zeros(cfg.width)}
        return params, {}

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        del frozen
        size = max_segments(batch.tokens.token_ids.shape[1])

        def encode(params, tokens, key):
            return encoder.encode(
                params,
                tokens,
                cfg,
                pool,
                max_segments=size,
                key=key,
                every_layer=nested.needs_all_layers,
            )

        encode_key, loss_key = jax.random.split(key)
        encode = encode_in_chunks(
            encode, num_chunks(len(batch.query_index), micro_batch)
        )
        vectors = encode(params["encoder"], batch.tokens, encode_key)
        if head == "tanh":
            dense = params["head"]
            bias = jnp.broadcast_to(dense["bias"], vectors.shape)
            vectors = jnp.tanh(vectors @ dense["kernel"] + bias)
        q, d = vectors[batch.query_index], vectors[batch.document_index]
        values, metrics = nested.loss(q, d, batch.labels, loss_key)
        value = values.mean()
        penalty_key = jax.random.fold_in(loss_key, 1)
        value += position_penalty(penalty_key, params["encoder"], cfg)
        return LossOutput(value, {**metrics, **_similarities(q, d)})

    return Objective(init, loss)


def _similarities(q: Array, d: Array) -> Metrics:
    """How the full-size embeddings of the queries rank their own documents."""
    if q.ndim == 3:
        q, d = q[:, -1], d[:, -1]
    positives = d[:: len(d) // len(q)]  # [B, D]
    scores = jax.lax.stop_gradient(cosine(q, positives))  # [B, B]
    own = jnp.diagonal(scores)
    return {
        "positive_cosine": own.mean(),
        "negative_cosine": (scores.sum() - own.sum()) / max(1, scores.size - len(own)),
        "accuracy": (own >= scores.max(1)).mean(dtype=jnp.float32),
    }
