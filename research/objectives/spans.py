"""Objectives on several spans of a document, each in a row of its own."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from research.losses.contrastive import infonce
from research.losses.similarity import pair_scores
from research.losses.token_prediction import PredictedTokens, predictions
from research.models import decoders, heads, layers, token_ops
from research.models import encoder as models_encoder
from research.models.attention.masks import pooling_masks
from research.models.config import EncoderConfig
from research.models.pooling.basic import mean_pool
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.mlm import started
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


def cot_mae(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.3,
    decoder_ratio: float = 0.45,
    depth: int = 2,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """MLM, and a span again from its partner's vector (CoT-MAE, Wu et al. 2023).

    Rows 2i and 2i+1 hold two spans of a document, as `row_layout.name = 'spans'` makes them.
    A decoder of random blocks reads a span with more hidden, and in the place of its
    first token the last state of its partner's. Weights 1.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of tokens hidden from the encoder.
        decoder_ratio: of tokens hidden from the decoder, drawn by themselves.
        depth: blocks of the decoder.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; no block; on call, an odd number of rows.
    """
    check_mlm(cfg, text, ratio=ratio, decoder_ratio=decoder_ratio)
    if depth < 1:
        raise ValueError(f"objective.depth is {depth}; it should be at least 1")

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        key, params = started(key, cfg, encoder)
        return {**params, "decoder": decoders.init_decoder(key, cfg, depth)}, {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        keys = jax.random.split(key, 7)

        def part(mask_key, hide_key, ratio):
            (mask,) = mlm_masking.mask_whole_words(mask_key, batch, (ratio,))
            size = mlm_masking.buffer_size(mask.shape[1], ratio, text.min_length)
            return mask_tokens(hide_key, batch, mask, size, text, replace)

        seen, dark = part(*keys[:2], ratio), part(*keys[2:4], decoder_ratio)
        parts = cot_predictions(cfg, params, batch, seen, dark, keys[4:])
        total, found = predictions(params, parts, [1.0, 1.0])
        (mlm, right), (decoder, _) = found
        metrics = {"mlm": mlm, "decoder": decoder, "accuracy": right}
        metrics["masked"] = masked_fraction(seen.valid, batch)
        return LossOutput(total, metrics)

    return Objective(init, loss)


def cot_predictions(
    cfg: EncoderConfig,
    params: Params,
    batch: PretrainingBatch,
    seen: MaskedTokens,
    dark: MaskedTokens,
    keys: Sequence[Key | None],
) -> list[PredictedTokens]:
    """What CoT-MAE predicts: the encoder's hidden tokens, and the decoder's.

    Args:
        cfg: the encoder's shape.
        params: {"encoder", "head", "decoder"}.
        batch: spans [R, S], one in a row, partners in neighbouring rows.
        seen, dark: the same as the encoder and as the decoder reads them.
        keys: of dropout in the encoder, in the decoder's embedding layer and in its
            blocks; None for none.
    """
    tokens = batch.tokens._replace(token_ids=seen.token_ids)
    where = segment_positions(tokens.segment_ids)
    x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=keys[0])
    sentences = swapped(
        token_ops.gather_tokens(
            x, token_ops.first_token_positions(tokens.segment_ids, 1)
        )
    )
    y = layers.embed_tokens(params["encoder"], dark.token_ids, where, cfg, key=keys[1])
    y = token_ops.replace_first_tokens(y, sentences, where)
    decoder = params["decoder"]
    y = decoders.decode(
        params["encoder"],
        decoder,
        y,
        where,
        cfg,
        query_positions=dark.positions,
        key=keys[2],
    )
    head = partial(heads.apply_mlm_head, params["head"], cfg=cfg)
    return [
        PredictedTokens(
            head(token_ops.gather_tokens(x, seen.positions)), seen.labels, seen.valid
        ),
        PredictedTokens(head(y), dark.labels, dark.valid),
    ]


def swapped(x: Array) -> Array:
    """Rows 1, 0, 3, 2, ... of x [R, ...].

    Raises:
        ValueError: there is a row without a partner.
    """
    if len(x) % 2:
        raise ValueError(f"{len(x)} rows are no pairs of spans")
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def declutr(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    anchors: int = 2,
    positives: int = 2,
    ratio: float = 0.15,
    temperature: float = 0.05,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """Spans of a document near each other against all others (DeCLUTR, Giorgi 2021).

    A document has A + A*P neighbouring rows: its anchors, then the positives of each
    anchor, as `row_layout.name = 'spans'` makes them. NT-Xent of the anchors' mean-pooled
    vectors with the means of their positives', plus MLM on the anchors; the anchor that
    is contrasted is the one with hidden tokens.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        anchors, positives: A and P.
        ratio: of hidden tokens of the anchors; single tokens, not words.
        temperature: divides the cosines.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; on call, rows that are no whole documents.
    """
    check_mlm(cfg, text, ratio=ratio)
    group = anchors * (1 + positives)

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        return started(key, cfg, encoder)[1], {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        mask_key, hide_key, dropout_key = jax.random.split(key, 3)
        rows, length = batch.word_ids.shape
        if rows % group:
            raise ValueError(f"{rows} rows do not divide into groups of {group} spans")

        def of_anchors(x):
            return x.reshape(-1, group, *x.shape[1:])[:, :anchors].reshape(
                -1, *x.shape[1:]
            )

        first = (jnp.arange(rows) % group < anchors)[:, None]
        mask = mlm_masking.tokens(mask_key, batch, ratio) & first
        size = mlm_masking.buffer_size(length, ratio, text.min_length)
        seen = mask_tokens(hide_key, batch, mask, size, text, replace)
        tokens = batch.tokens._replace(token_ids=seen.token_ids)
        x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
        vectors = mean_pool(
            x, pooling_masks(tokens.segment_ids, tokens.pooling_mask, 1)
        )[:, 0]
        near = averaged(vectors, anchors, positives)
        contrast = nt_xent(of_anchors(vectors), near, temperature)
        seen = MaskedTokens(*map(of_anchors, seen))
        states = heads.apply_mlm_head(
            params["head"], token_ops.gather_tokens(of_anchors(x), seen.positions), cfg
        )
        part = PredictedTokens(states, seen.labels, seen.valid)
        total, [(mlm, right)] = predictions(params, [part], [1.0])
        metrics = {"mlm": mlm, "contrast": contrast, "accuracy": right}
        metrics["masked"] = masked_fraction(seen.valid, batch)
        return LossOutput(total + contrast, metrics)

    return Objective(init, loss)


def averaged(vectors: Array, anchors: int, positives: int) -> Array:
    """The mean of each anchor's positives, before any normalisation.

    Args:
        vectors: [G * (A + A*P), D] of documents' anchors, then their positives.
        anchors, positives: A and P.

    Returns:
        [G * A, D].
    """
    width = vectors.shape[-1]
    groups = vectors.reshape(-1, anchors * (1 + positives), width)[:, anchors:]
    return groups.reshape(-1, positives, width).mean(1)


def nt_xent(x: Array, y: Array, temperature: float) -> Array:
    """Each of 2N vectors finds its partner among all others (SimCLR, Chen et al. 2020).

    Args:
        x, y: [N, D]; x_i and y_i are partners.
        temperature: divides the cosines.

    Returns:
        [] the mean of the cross-entropies.
    """
    pair = jnp.arange(len(x), dtype=jnp.uint32)
    # A vector is its partner's positive: of the same "query", it is left out of its
    # own softmax.
    ids = jnp.tile(jnp.stack([pair, pair], 1), (2, 1))
    scores = pair_scores(jnp.concatenate([x, y]), jnp.concatenate([y, x]), "cosine")
    return infonce(scores, Labels(query_id=ids), temperature=temperature).mean()
