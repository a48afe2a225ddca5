"""Training objectives: an encoder and a loss put together."""

import dataclasses

import jax
import jax.numpy as jnp

from research.gradcache import chunked
from research.models import encoder, readouts, seqpe
from research.models.config import EncoderConfig
from research.pretraining.causal import next_tokens
from research.structs import (
    Array,
    Batch,
    Key,
    Metrics,
    Nested,
    Objective,
    Params,
    Pool,
    slots,
)


def contrastive(
    cfg: EncoderConfig,
    pool: Pool | readouts.Readout,
    nested: Nested,
    *,
    micro_batch: int = 0,
    head: str = "none",
) -> Objective:
    """Contrasts the queries of a batch with its documents, at every size that is asked.

    Args:
        cfg: the encoder's shape.
        pool: one of `pooling.POOLS`, or a Readout of `readouts.READOUTS`, whose
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
        params = {"encoder": readouts.with_readout(readout_key, start, cfg, pool)}
        if head == "tanh":
            shape = (cfg.width, cfg.width)
            kernel = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), shape)
            params["head"] = {"kernel": kernel, "bias": jnp.zeros(cfg.width)}
        return params, {}

    def loss(
        params: Params, frozen: Params, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        del frozen
        size = slots(batch.tokens.ids.shape[1])

        def encode(params, tokens, key):
            return encoder.encode(
                params,
                tokens,
                cfg,
                pool,
                slots=size,
                key=key,
                every_layer=nested.deep,
            )

        encode_key, loss_key = jax.random.split(key)
        encode = chunked(encode, chunks(len(batch.query), micro_batch))
        vectors = encode(params["encoder"], batch.tokens, encode_key)
        if head == "tanh":
            dense = params["head"]
            bias = jnp.broadcast_to(dense["bias"], vectors.shape)
            vectors = jnp.tanh(vectors @ dense["kernel"] + bias)
        q, d = vectors[batch.query], vectors[batch.document]
        values, metrics = nested.loss(q, d, batch.labels, loss_key)
        value = values.mean()
        if cfg.relative == "seqpe":
            vectors_of = params["encoder"]["relative"]
            value += seqpe.penalty(jax.random.fold_in(loss_key, 1), vectors_of, cfg)
        return value, {**metrics, **_similarities(q, d)}

    return Objective(init, loss)


def gritlm(
    cfg: EncoderConfig,
    pool: Pool | readouts.Readout,
    nested: Nested,
    *,
    micro_batch: int = 0,
    weight: float = 1.0,
) -> Objective:
    """Embeds with the encoder and speaks with it (GritLM, Muennighoff et al. 2024).

    To the contrastive loss, of tokens that see both sides, the language modelling of
    the same texts is added, of tokens that see only what stands before: the same
    parameters under another mask (equation 3; the authors have other texts for it).

    Args:
        cfg: the encoder's shape, not causal.
        pool, nested, micro_batch: as in `contrastive`; the texts are not language
            modelled by micro-batches.
        weight: of the language modelling, the mean of all predicted tokens.

    Returns:
        an Objective of batches of type Batch, with the metrics of `contrastive`, and
        "contrastive" and "language", the two losses, and "perplexity".

    Raises:
        ValueError: the encoder is causal.
    """
    if cfg.causal:
        raise ValueError(
            "gritlm embeds with an encoder that sees both sides, but encoder.causal is "
            "True"
        )
    embedding = contrastive(cfg, pool, nested, micro_batch=micro_batch)
    speaking = dataclasses.replace(cfg, causal=True)

    def loss(
        params: Params, frozen: Params, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        value, metrics = embedding.loss(params, frozen, batch, key)
        key = jax.random.fold_in(key, 1)
        language, _ = next_tokens(params["encoder"], batch.tokens, speaking, key)
        more = {"contrastive": value, "language": language}
        more["perplexity"] = jnp.exp(language)
        return value + weight * language, {**metrics, **more}

    return Objective(embedding.init, loss)


def chunks(batch_size: int, micro_batch: int) -> int:
    """Number of chunks that a batch is encoded in.

    Raises:
        ValueError: the batch does not divide into micro-batches of that size.
    """
    if micro_batch <= 0:
        return 1
    if batch_size % micro_batch:
        raise ValueError(
            f"batch_size {batch_size} does not divide by micro_batch {micro_batch}"
        )
    return batch_size // micro_batch


def _similarities(q: Array, d: Array) -> Metrics:
    """How the full-size embeddings of the queries rank their own documents."""
    if q.ndim == 3:
        q, d = q[:, -1], d[:, -1]
    q, d = (x / jnp.maximum(jnp.linalg.norm(x, axis=1)[:, None], 1e-12) for x in (q, d))
    positives = d[:: len(d) // len(q)]
    scores = jax.lax.stop_gradient(q @ positives.T)
    own = jnp.diagonal(scores)
    return {
        "positive_cosine": own.mean(),
        "negative_cosine": (scores.sum() - own.sum()) / max(1, scores.size - len(own)),
        "accuracy": (own >= scores.max(1)).mean(dtype=jnp.float32),
    }


OBJECTIVES = {"contrastive": contrastive, "gritlm": gritlm}
