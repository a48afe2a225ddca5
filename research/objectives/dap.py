"""Dual-alignment pre-training: ranks translations, and reconstructs their tokens."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research import sharding
from research.losses.token_prediction import PredictedTokens, mean_token_losses
from research.models import decoders, embedding, encoder, heads
from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling
from research.models.positions.segment_positions import segment_positions
from research.models.token_ops import gather_tokens
from research.objectives.contrastive import contrastive
from research.objectives.inputs import reads_pairs
from research.types import (
    Array,
    Batch,
    Key,
    LossOutput,
    Objective,
    Params,
    Pool,
    SizeLoss,
    max_segments,
)


@reads_pairs
def dap(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    micro_batch: int = 0,
    head: str = "tanh",
    weight: float = 0.1,
    depth: int = 2,
    length: int = 128,
) -> Objective:
    """Ranks translations, and predicts the tokens of each from its source (DAP).

    Li et al. 2023, with representation translation learning: the input of a decoder is
    the token states of the query, followed by a mask at each place of the document's
    tokens, which it predicts. The decoder starts as the last blocks and the embedding
    layer of the encoder, which embeds the masks and then adds positions to all its
    inputs. First tokens are left out on both sides: the authors' code hides them from
    the attention. The mask is a vector of its own, and the head is random.

    Args:
        cfg: The encoder's shape.
        pool: As in `contrastive`.
        size_loss: As in `contrastive`.
        micro_batch: As in `contrastive`; the tokens are predicted for the full batch at
            once, in a second pass of the encoder.
        head: As in `contrastive`.
        weight: Weight of the prediction, which is a mean over tokens.
        depth: Number of the decoder's blocks.
        length: Most tokens of a text that the decoder reads or predicts, the first one
            included; half of the encoder's positions are the most.

    Returns:
        An Objective whose batches are Batch, with the metrics of `contrastive`, the two
        losses "ranking" and "translation", and "translation_accuracy".

    Raises:
        ValueError: The encoder has fewer blocks than the decoder, or `length` is below
            2.
    """
    if not 1 <= depth <= cfg.depth:
        raise ValueError(f"objective.depth is {depth}; allowed: 1 ... {cfg.depth}")
    if length < 2:
        raise ValueError(f"objective.length is {length}; it should be at least 2")
    # Tokens of a text but for the first one, so that two texts have positions
    limit = length - 1
    if cfg.position == "learned":
        limit = min(limit, cfg.max_len // 2)
    ranking = contrastive(cfg, pool, size_loss, micro_batch=micro_batch, head=head)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, frozen = ranking.init(key, encoder_params)
        source = params["encoder"]
        head_key, mask_key = jax.random.split(jax.random.fold_in(key, 4))
        # Copies, which are trained apart from the encoder
        layers = jax.tree.map(lambda x: x[-depth:], source["layers"])
        decoder = {"layers": layers}
        if "final_norm" in source:
            decoder["final_norm"] = source["final_norm"]
        translation = {
            "embed": source["embed"],
            "decoder": decoder,
            "head": heads.init_mlm_head(head_key, cfg),
            "mask": 0.02 * jax.random.normal(mask_key, (cfg.width,)),
        }
        return {**params, "translation": jax.tree.map(jnp.array, translation)}, frozen

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        value, metrics, _ = ranking.loss(params, frozen, batch, key)
        # Independent dropout in the second pass
        encode_key, *decode_keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        x, _ = encoder.apply(params["encoder"], batch.tokens, cfg, key=encode_key)
        part = predict_translations(params, x, batch, cfg, limit, decode_keys)
        translation, [means] = mean_token_losses(
            params["translation"]["embed"]["token"]["embedding"],
            params["translation"]["head"]["bias"],
            [part],
        )
        metrics = {
            **metrics,
            "ranking": value,
            "translation": translation,
            "translation_accuracy": means.accuracy,
        }
        return LossOutput(value + weight * translation, metrics)

    return Objective(init, loss)


class JoinedPairs(NamedTuple):
    """Rows of the tokens of a query and then of its first document; first tokens apart.

    L is the limit of a text, and T = 2 * L.

    Attributes:
        states: [B, T, D] encoder states of the query's tokens, and others after these.
        offsets: [B, T] int32 position of a token in its own text.
        segment_ids: [B, T] int32, 1 for tokens of both texts and 0 for padding.
        num_source: [B] int32 number of the query's tokens.
        labels: [B, L] int32 the document's tokens, and others after these.
        valid: [B, L] bool, whether they are the document's.
    """

    states: Array
    offsets: Array
    segment_ids: Array
    num_source: Array
    labels: Array
    valid: Array


def predict_translations(
    params: Params,
    x: Array,
    batch: Batch,
    cfg: EncoderConfig,
    limit: int,
    keys: list[Key] | tuple[None, None],
) -> PredictedTokens:
    """Predicts the tokens of each query's first document from the query's states.

    Args:
        params: {"encoder", "translation"}.
        x: [R, S, D] states of the encoder.
        batch: The batch; the document's tokens are labels and no inputs.
        cfg: The encoder's shape.
        limit: L, the most tokens of a text, without its first one.
        keys: Dropout keys of the decoder's embedding layer and of its blocks.
    """
    own = params["translation"]
    pairs = sharding.map_over_data(
        partial(join_pairs, limit),
        x,
        batch.tokens.token_ids,
        batch.tokens.segment_ids,
        batch.query_index,
        batch.document_index,
        average=False,
    )
    # [L + 1, D] masks at each position of a text
    row = jnp.ones((1, limit + 1), jnp.int32)
    masks = embedding.embed_tokens(
        own,
        row,
        segment_positions(row),
        cfg,
        states=jnp.broadcast_to(
            own["mask"].astype(cfg.compute_dtype), (1, limit + 1, cfg.width)
        ),
    )[0]
    # [B, T, D] states of the query and masks of the document, through the layer again
    places = jnp.arange(pairs.offsets.shape[1])[None]
    is_source = (places < pairs.num_source[:, None])[..., None]
    inputs = jnp.where(is_source, pairs.states, masks[pairs.offsets])
    positions = segment_positions(pairs.segment_ids)
    inputs = embedding.embed_tokens(
        own, pairs.segment_ids, positions, cfg, states=inputs, key=keys[0]
    )
    # [B, L, D] states at the document's places
    targets = pairs.num_source[:, None] + jnp.arange(limit)[None]
    y = decoders.decode(
        params["encoder"],
        own["decoder"],
        inputs,
        positions,
        cfg,
        query_positions=targets.astype(jnp.int32),
        key=keys[1],
    )
    y = heads.apply_mlm_head(own["head"], y, cfg)
    return PredictedTokens(y, pairs.labels, pairs.valid)


def join_pairs(
    limit: int,
    x: Array,
    token_ids: Array,
    segment_ids: Array,
    query_index: Array,
    document_index: Array,
) -> JoinedPairs:
    """The tokens of each query and of its first document in one row, of one device.

    Args:
        limit: L, the most tokens of a text, without its first one.
        x: [R, S, D] states of packed rows.
        token_ids: [R, S] int32.
        segment_ids: [R, S] int32.
        query_index: [B] int32 index of each query's vector, as in `Batch`.
        document_index: [B*K] int32, the same for documents.
    """
    num_rows, length = segment_ids.shape
    texts_per_row = max_segments(length)
    documents = document_index[:: len(document_index) // len(query_index)]

    def find_text(index: Array) -> tuple[Array, Array, Array]:
        # [B] row, second token and number of the tokens that follow the first
        index = index - sharding.find_first_row(num_rows * texts_per_row)
        row, segment = index // texts_per_row, index % texts_per_row + 1
        is_text = segment_ids[row] == segment[:, None]  # [B, S]
        start = jnp.argmax(is_text, axis=1).astype(jnp.int32) + 1
        return row, start, jnp.minimum(is_text.sum(1, dtype=jnp.int32) - 1, limit)

    row, start, num_source = find_text(query_index)
    target_row, target_start, num_target = find_text(documents)
    # [B, T] position of each token in its own text, after the first one
    places = jnp.arange(2 * limit, dtype=jnp.int32)[None]  # [1, T]
    is_source = places < num_source[:, None]
    offsets = jnp.where(is_source, places, places - num_source[:, None])
    source = jnp.minimum(start[:, None] + offsets, length - 1)
    # [B, L] tokens of the document
    own = places[:, :limit]
    columns = jnp.minimum(target_start[:, None] + own, length - 1)
    return JoinedPairs(
        states=gather_tokens(x[row], source),
        offsets=jnp.minimum(offsets + 1, limit),
        segment_ids=(places < (num_source + num_target)[:, None]).astype(jnp.int32),
        num_source=num_source,
        labels=jnp.take_along_axis(token_ids[target_row], columns, axis=1),
        valid=own < num_target[:, None],
    )
