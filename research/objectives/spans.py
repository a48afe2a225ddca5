"""Objectives on spans of documents, one span per row: CoT-MAE and DeCLUTR."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from research.losses.contrastive import infonce
from research.losses.similarity import pair_scores
from research.losses.token_prediction import PredictedTokens
from research.models import decoders, embedding, encoder, heads, token_ops
from research.models.attention.masks import pooling_masks
from research.models.config import EncoderConfig
from research.models.pooling.basic import mean_pool
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.inputs import reads_spans
from research.objectives.masked_prediction import (
    decoder_metrics,
    init_params,
    mask_batch,
    masked_inputs,
    mlm_losses,
    predict_masked,
)
from research.objectives.mlm_masking import (
    BERT_REPLACE,
    MaskedTokens,
    check_mlm,
    mask_tokens,
    masked_fraction,
)
from research.types import (
    Array,
    Key,
    Labels,
    LossOutput,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
)


@reads_spans("cot")
def cot_mae(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.3,
    decoder_ratio: float = 0.45,
    depth: int = 2,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """MLM, and prediction of a span from its partner (CoT-MAE, Wu et al. 2023).

    Rows 2i and 2i+1 hold two spans of a document, as in the row layout "spans". The
    input of a randomly initialized decoder is a span with more tokens masked, whose
    first embedding is replaced by the final hidden state of its partner's first token.
    Both losses have weight 1.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of tokens masked in the encoder.
        decoder_ratio: Share of tokens masked in the decoder, sampled independently.
        depth: Number of the decoder's blocks.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`, or the depth is below 1; when called, the number of rows
            is odd.
    """
    check_mlm(cfg, tokenizer, ratio=ratio, decoder_ratio=decoder_ratio)
    if depth < 1:
        raise ValueError(f"objective.depth is {depth}; it should be at least 1")

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, key = init_params(key, cfg, encoder_params)
        return {**params, "decoder": decoders.init_decoder(key, cfg, depth)}, {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        keys = jax.random.split(key, 7)
        # Masked tokens of the encoder, and independently of the decoder
        masked = mask_batch(*keys[:2], batch, ratio, tokenizer, replace)
        decoder_masked = mask_batch(
            *keys[2:4], batch, decoder_ratio, tokenizer, replace
        )
        parts = predict_from_partners(
            params, batch, masked, decoder_masked, keys[4:], cfg
        )
        # Both in one pass over the vocabulary
        total, [mlm, decoded] = mlm_losses(params, parts, [1.0, 1.0])
        total += position_penalty(key, params["encoder"], cfg)
        return LossOutput(total, decoder_metrics(mlm, decoded, masked, batch))

    return Objective(init, loss)


def predict_from_partners(
    params: Params,
    batch: PretrainingBatch,
    masked: MaskedTokens,
    decoder_masked: MaskedTokens,
    keys: Sequence[Key | None],
    cfg: EncoderConfig,
) -> list[PredictedTokens]:
    """CoT-MAE's predictions of masked tokens, by the encoder and by the decoder.

    Args:
        params: {"encoder", "head", "decoder"}.
        batch: Spans [R, S], one per row, with partners in neighboring rows.
        masked: Masked tokens of the encoder.
        decoder_masked: Masked tokens of the decoder.
        keys: Dropout keys of the encoder, of the decoder's embedding layer and of its
            blocks; None runs without dropout.
        cfg: The encoder's shape.
    """
    # [R, S, D] the encoder's states; [R, 1, D] the vectors of each span's partner
    tokens = masked_inputs(batch, masked)
    positions = segment_positions(tokens.segment_ids)
    x, _ = encoder.apply(params["encoder"], tokens, cfg, key=keys[0])
    first_tokens = token_ops.first_token_positions(tokens.segment_ids, 1)
    partners = swap_partners(token_ops.gather_tokens(x, first_tokens))

    # [R, P, D] the decoder's states of its masked tokens
    y = embedding.embed_tokens(
        params["encoder"], decoder_masked.token_ids, positions, cfg, key=keys[1]
    )
    y = token_ops.replace_first_tokens(y, partners, positions)
    y = decoders.decode(
        params["encoder"],
        params["decoder"],
        y,
        positions,
        cfg,
        query_positions=decoder_masked.positions,
        key=keys[2],
    )
    y = heads.apply_mlm_head(params["head"], y, cfg)
    return [
        predict_masked(params, x, masked, cfg),
        PredictedTokens(y, decoder_masked.labels, decoder_masked.valid),
    ]


def swap_partners(x: Array) -> Array:
    """Swaps neighboring rows: rows 1, 0, 3, 2, ... of x [R, ...].

    Raises:
        ValueError: A row has no partner.
    """
    if len(x) % 2:
        raise ValueError(f"{len(x)} rows are no pairs of spans")
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


@reads_spans("declutr")
def declutr(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    anchors: int = 2,
    positives: int = 2,
    ratio: float = 0.15,
    temperature: float = 0.05,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """Contrasts spans near each other with all others (DeCLUTR, Giorgi et al. 2021).

    A document has A + A*P neighboring rows: its anchors, then the positives of each
    anchor, as in the row layout "spans". The loss is NT-Xent between the mean-pooled
    vectors of anchors and the means of their positives' vectors, plus MLM on the
    anchors, whose vectors are computed from the masked rows.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        anchors: A, the number of anchors per document.
        positives: P, the number of positives per anchor.
        ratio: Share of the anchors' tokens that are masked, as single tokens rather
            than whole words.
        temperature: Divisor of the cosines.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`; when called, the rows do not form complete documents.
    """
    check_mlm(cfg, tokenizer, ratio=ratio)
    group = anchors * (1 + positives)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        return init_params(key, cfg, encoder_params)[0], {}

    def select_anchors(x: Array) -> Array:
        """The rows of anchors: [G * (A + A*P), ...] -> [G * A, ...]."""
        # [G, A, ...] anchors of each document
        groups = x.reshape(-1, group, *x.shape[1:])[:, :anchors]
        return groups.reshape(-1, *x.shape[1:])

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        mask_key, replace_key, dropout_key = jax.random.split(key, 3)
        rows, length = batch.word_ids.shape
        if rows % group:
            raise ValueError(f"{rows} rows do not divide into groups of {group} spans")

        # [R, S, D] hidden states of the rows; tokens of anchors are masked
        is_anchor = (jnp.arange(rows) % group < anchors)[:, None]
        mask = mlm_masking.mask_single_tokens(mask_key, batch, ratio) & is_anchor
        size = mlm_masking.buffer_size(length, ratio, tokenizer.min_length)
        masked = mask_tokens(replace_key, batch, mask, size, tokenizer, replace)
        tokens = masked_inputs(batch, masked)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)

        # [R, D] vectors of spans; anchors are contrasted with means of positives
        pooling = pooling_masks(tokens.segment_ids, tokens.pooling_mask, 1)
        vectors = mean_pool(x, pooling)[:, 0]
        positive_means = average_positives(vectors, anchors, positives)
        contrast = nt_xent(select_anchors(vectors), positive_means, temperature)

        # MLM on the anchors
        anchor_masked = MaskedTokens(*map(select_anchors, masked))
        part = predict_masked(params, select_anchors(x), anchor_masked, cfg)
        mlm_loss, [means] = mlm_losses(params, [part], [1.0])

        total = mlm_loss + contrast + position_penalty(key, params["encoder"], cfg)
        metrics = {
            "mlm": means.loss,
            "contrast": contrast,
            "accuracy": means.accuracy,
            "masked": masked_fraction(anchor_masked.valid, batch),
        }
        return LossOutput(total, metrics)

    return Objective(init, loss)


def average_positives(vectors: Array, anchors: int, positives: int) -> Array:
    """The mean of each anchor's positives, which are not normalized.

    Args:
        vectors: [G * (A + A*P), D]: each document's anchors, then their positives.
        anchors: A, the number of anchors per document.
        positives: P, the number of positives per anchor.

    Returns:
        [G * A, D] means.
    """
    chex.assert_rank(vectors, 2)
    width = vectors.shape[-1]
    # [G, A*P, D] positives of each document
    groups = vectors.reshape(-1, anchors * (1 + positives), width)[:, anchors:]
    return groups.reshape(-1, positives, width).mean(1)


def nt_xent(x: Array, y: Array, temperature: float) -> Array:
    """Each of 2N vectors classifies its partner among all others (SimCLR).

    Chen et al. 2020, equation 1.

    Args:
        x: [N, D] vectors.
        y: [N, D] vectors; x_i and y_i are partners.
        temperature: Divisor of the cosines.

    Returns:
        [] float32, the mean of the 2N cross-entropies.
    """
    chex.assert_equal_shape([x, y])
    pair = jnp.arange(len(x), dtype=jnp.uint32)
    # Queries are x and y, documents y and x. Partners share a query id, so that infonce
    # leaves a vector out of its own softmax.
    query_ids = jnp.tile(jnp.stack([pair, pair], 1), (2, 1))
    scores = pair_scores(jnp.concatenate([x, y]), jnp.concatenate([y, x]), "cosine")
    return infonce(scores, Labels(query_id=query_ids), temperature=temperature).mean()
