"""Contrastive objective of queries and documents, at one or several model sizes."""

import chex
import jax
import jax.numpy as jnp

from research import sharding
from research.losses.rank_penalty import von_neumann_entropy
from research.losses.regularizers import sparsity_metrics
from research.losses.similarity import (
    PairScores,
    PairVectors,
    gather_pairs,
    map_row_blocks,
)
from research.models import encoder
from research.models.config import EncoderConfig
from research.models.pooling import registry
from research.models.pooling.basic import ONE_VECTOR_KINDS, LearnedPooling
from research.models.positions.bias import position_penalty
from research.objectives.gradcache import (
    count_chunks,
    count_min_chunks,
    encode_in_chunks,
)
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
    max_segments,
)

# Activations of the dense layer after the pooled vector, by the name of the head.
HEADS = {"none": None, "tanh": jnp.tanh, "linear": lambda x: x}


@reads_pairs
def contrastive(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    micro_batch: int = 0,
    head: str = "none",
    head_width: int = 0,
    keep_head: bool = False,
    projection_width: int = 0,
    rank_weight: float = 0.0,
    query_tokens: int = 0,
    document_tokens: int = 0,
) -> Objective:
    """Contrasts the queries of a batch with its documents, by a loss over sizes.

    Args:
        cfg: The encoder's shape.
        pool: A pooling function, or a pooling with parameters, which are trained too.
            Pooling parameters of the encoder are dropped if the pooling has none.
        size_loss: A loss over sizes, from `matryoshka.SIZE_LOSSES`.
        micro_batch: Most pairs that each device encodes at a time; 0 encodes all at
            once. The gradient is that of the full batch (GradCache, Gao et al. 2021).
        head: "tanh" applies a dense layer with tanh to the pooled vector (SimCSE, Gao
            et al. 2021, section 3); "linear" a dense layer alone, such as a projection
            to the width of a teacher; "none" has no head.
        head_width: Width of the head's output; 0 for the encoder's width.
        keep_head: Whether the trained model embeds with the head, as supervised SimCSE
            does; unsupervised SimCSE has it in training only.
        projection_width: Width of a dense layer after the embedding, whose output
            instead of the embedding is compared with a teacher's vectors
            (`distillation.embedding_mse`, `embedding_cosine`), at full size; it serves
            the training only. 0 compares the embeddings themselves.
        rank_weight: Weight of the entropy of the batch's embeddings at full size, which
            reduces their rank (`von_neumann_entropy`), such as 0.01; 0 for no term. It
            is logged as the metric "representation_rank".
        query_tokens: Most scored tokens of a query, for a pooling that gives each a
            vector, such as 32 for ColBERT's; 0 for all of a row, which take more
            memory.
        document_tokens: The same for documents.

    Returns:
        An Objective whose batches are Batch.

    Raises:
        ValueError: The head is unknown, there is none to keep, or an option does not go
            with several vectors per text.
    """
    if head not in HEADS:
        raise ValueError(f"objective.head is {head!r}; allowed: {', '.join(HEADS)}")
    if head == "none" and (keep_head or head_width):
        name = "keep_head" if keep_head else "head_width"
        raise ValueError(f"objective.{name} needs a head: objective.head='tanh'")

    kind = pool.kind if isinstance(pool, LearnedPooling) else "dense"
    options = {
        "head": head != "none",
        "projection_width": projection_width,
        "rank_weight": rank_weight,
    }
    has_tokens = kind not in ONE_VECTOR_KINDS
    if has_tokens and any(options.values()):
        option = next(name for name, value in options.items() if value)
        raise ValueError(f"objective.{option} does not go with several vectors a text")

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, _ = init_params(key, cfg, encoder_params, mlm_head=False)
        # Parameters of a learned pooling, kept with the encoder's
        pool_key = jax.random.fold_in(key, 2)
        params["encoder"] = registry.add_pooling_params(
            pool_key, params["encoder"], cfg, pool
        )
        # The dense layer of the training head
        if head != "none":
            shape = (cfg.width, head_width or cfg.width)
            kernel = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), shape)
            params["head"] = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
        # The layer to a teacher's width
        if projection_width:
            shape = (head_width or cfg.width, projection_width)
            kernel = 0.02 * jax.random.normal(jax.random.fold_in(key, 3), shape)
            params["projection"] = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
        return params, {}

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        del frozen
        encode_key, loss_key = jax.random.split(key)

        # [N, D], or [N, L+1, D] for all layers: embeddings of the texts of all rows, or
        # of their tokens
        embeddings = encode_batch(params["encoder"], batch, encode_key)
        if head != "none":
            embeddings = HEADS[head](_apply_layer(params["head"], embeddings))

        # [N, E] what is compared with a teacher's vectors, if not the embeddings
        projected = None
        if projection_width:
            last = embeddings[:, -1] if embeddings.ndim == 3 else embeddings
            projected = _apply_layer(params["projection"], last)

        # Devices exchange embeddings in the encoder's precision
        embeddings = embeddings.astype(cfg.dtype)
        # Queries may have vectors of their own, without the encoder
        query_embeddings, scored = None, None
        if registry.has_query_pooling(pool):
            query_embeddings = encode_batch(params["encoder"], batch, None, True)
        # [R, S] the texts of the tokens that are scored
        if has_tokens:
            mask, segment_ids = batch.tokens.pooling_mask, batch.tokens.segment_ids
            scored = jnp.where(mask, segment_ids, 0)
        # The loss of each device's pairs, whose texts are in the device's rows
        value, metrics = sharding.map_over_data(
            compute_loss,
            query_embeddings,
            embeddings,
            scored,
            projected,
            batch.query_index,
            batch.document_index,
            batch.labels,
            loss_key,
        )
        value += position_penalty(key, params["encoder"], cfg)
        return LossOutput(value, metrics)

    def compute_loss(
        queries,
        documents,
        scored,
        projected,
        query_index,
        document_index,
        labels,
        key,
    ):
        queries = documents if queries is None else queries
        # [B, ...], [B*K, ...] of this device; of a vector per token [B, T, D]
        if has_tokens:
            q = take_token_vectors(queries, scored, query_index, query_tokens)
            d = take_token_vectors(documents, scored, document_index, document_tokens)
        else:
            q = take_texts(queries, query_index)
            d = take_texts(documents, document_index)
        if projected is not None:
            labels = labels._replace(
                query_projection=take_texts(projected, query_index),
                document_projection=take_texts(projected, document_index),
            )
        losses, metrics = size_loss.loss(q, d, labels, key)
        # The last layer
        if size_loss.needs_all_layers:
            q, d = q[:, -1], d[:, -1]
        # Rows of tokens have the similarity of their kind's name
        names = {
            **dict.fromkeys(ONE_VECTOR_KINDS, "cosine"),
            "multi_vector": "meanmaxsim",
        }
        similarity = names.get(kind, kind)
        metrics = {**metrics, **ranking_metrics(q, d, similarity)}
        if kind == "sparse":
            metrics |= sparsity_metrics(q, d)
        if not rank_weight:
            return losses.mean(), metrics
        # The entropy is of all devices' texts, at full size
        vectors = gather_pairs(q, d)
        texts = jnp.concatenate([vectors.all_queries, vectors.all_documents])
        entropy = von_neumann_entropy(texts)
        metrics["representation_rank"] = jnp.exp(jax.lax.stop_gradient(entropy))
        return losses.mean() + rank_weight * entropy, metrics

    def encode_batch(
        params: Params, batch: Batch, key: Key | None, as_queries: bool = False
    ) -> Array:
        texts_per_row = max_segments(batch.tokens.token_ids.shape[1])

        def encode(params, tokens, key):
            return encoder.encode(
                params,
                tokens,
                cfg,
                pool,
                max_segments=texts_per_row,
                key=key,
                every_layer=size_loss.needs_all_layers,
                as_queries=as_queries,
            )

        # With micro-batches, chunk by chunk
        devices = sharding.count_batch_devices()
        min_chunks = count_min_chunks(len(batch.query_index), micro_batch, devices)
        chunks = count_chunks(len(batch.tokens.token_ids) // devices, min_chunks)
        return encode_in_chunks(encode, chunks)(params, batch.tokens, key)

    return Objective(init, loss)


def take_texts(embeddings: Array, index: Array) -> Array:
    """The embeddings of a device's texts, within `sharding.map_over_data`.

    Args:
        embeddings: [n, ...] embeddings of the device's rows.
        index: [m] index of each text among the embeddings of all devices.

    Returns:
        [m, ...]; NaN for a text in a row of another device.
    """
    index = index - sharding.find_first_row(len(embeddings))
    index = jnp.where(index < 0, len(embeddings), index)
    return embeddings.at[index].get(mode="fill", fill_value=jnp.nan)


def take_token_vectors(
    vectors: Array, segment_ids: Array, index: Array, length: int = 0
) -> Array:
    """The vectors of the scored tokens of texts, within `sharding.map_over_data`.

    Args:
        vectors: [R*S, d] vectors of the tokens of the device's rows; or [R*S, L+1, d]
            of every layer.
        segment_ids: [R, S] int32 text of each token, as in `Tokens`, but 0 for tokens
            that are not scored.
        index: [m] index of each text among those of all devices' rows, as in `Batch`.
        length: T, the most scored tokens of a text, whose others are left out; 0 for S.

    Returns:
        [m, T, d], or [m, L+1, T, d] of every layer; zeros after the last token, and NaN
        for a text in a row of another device.
    """
    chex.assert_rank([segment_ids, index], [2, 1])
    rows, row_length = segment_ids.shape
    slots = max_segments(row_length)
    # [m] row of each text on this device; an index beyond them is filled with NaN
    row = index // slots - sharding.find_first_row(rows)
    is_present = (row >= 0) & (row < rows)
    row = jnp.clip(row, 0, rows - 1)
    # [m, T] the positions of the text's tokens in the row, then those of others
    is_text = segment_ids[row] == (index % slots + 1)[:, None]  # [m, S]
    order = jnp.argsort(~is_text, axis=1, stable=True)[:, : length or row_length]
    is_token = jnp.take_along_axis(is_text, order, axis=1)
    positions = (row * row_length)[:, None] + order.astype(jnp.int32)
    positions = jnp.where(is_token, positions, len(vectors))
    # [m, T, ...] vectors
    x = vectors.at[positions].get(mode="fill", fill_value=0)
    axes = tuple(range(1, x.ndim))
    x = jnp.where(jnp.expand_dims(is_present, axes), x, jnp.nan)
    return jnp.swapaxes(x, 1, 2) if x.ndim == 4 else x


def _apply_layer(params: Params, x: Array) -> Array:
    """W x + b of embeddings [..., D]."""
    x = x @ params["kernel"]
    return x + jnp.broadcast_to(params["bias"], x.shape)


def ranking_metrics(q: Array, d: Array, similarity: str = "cosine") -> Metrics:
    """Mean cosines of positives and negatives at full size, and in-batch accuracy.

    Args:
        q: [B, D] queries, or [B, S, D] vectors of their tokens.
        d: [B*K, D] or [B*K, T, D] documents.
        similarity: Name of what is called a cosine here, that of a kind of embeddings.
    """
    q, d = jax.lax.stop_gradient((q, d))

    def rank_rows(rows: PairVectors):
        # [b, B] scores of all positives; each query's own; the sum of the negatives'
        scores = PairScores(rows, similarity).query_document[:, :: rows.docs_per_query]
        positives = jnp.sum(jnp.where(rows.is_own, scores, 0.0), axis=1)
        correct = (positives >= scores.max(1)).astype(jnp.float32)
        return positives, scores.sum(1) - positives, correct

    vectors = gather_pairs(q, d)
    positives, negatives, correct = map_row_blocks(rank_rows, vectors)  # each [B]
    num_negatives = max(1, len(vectors.all_queries) - 1)
    return {
        "positive_cosine": positives.mean(),
        "negative_cosine": negatives.mean() / num_negatives,
        "accuracy": correct.mean(),
    }
