"""RetroMAE and DupMAE: a decoder that has little but the vector of the text."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses.token_prediction import PredictedTokens, bag_of_words, predictions
from research.models import decoders, heads, layers, stack, token_ops
from research.models import encoder as models_encoder
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import segment_positions
from research.models.token_ops import gather_tokens
from research.objectives import mlm_masking
from research.objectives.mlm import started
from research.objectives.mlm_masking import (
    BERT_REPLACE,
    check_mlm,
    mask_tokens,
    masked_fraction,
)
from research.types import (
    Array,
    Key,
    LossOutput,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
    max_documents,
)


def retromae(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.3,
    decoder_ratio: float = 0.5,
    patterns: int = 256,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """MLM, and every token again from the text's vector (RetroMAE, Xiao et al. 2022).

    The decoder is one random block. Its queries are the vector plus the raw position
    embedding (the vector alone in an encoder without a position table, whose blocks
    know positions by themselves); its keys and values are the text's embeddings, of
    which each query sees others (`mae.visibility`). Weights 1.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of tokens hidden from the encoder.
        decoder_ratio: of tokens hidden from a query of the decoder.
        patterns: different masks of the decoder in a text, at most.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; no pattern.
    """
    rule = _Enhanced(ratio, decoder_ratio, patterns, replace, False, 0.0)
    return _enhanced(cfg, text, rule)


def dupmae(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.3,
    decoder_ratio: float = 0.5,
    patterns: int = 256,
    bag_weight: float = 0.1,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """RetroMAE, and the text's bag of words (DupMAE, Xiao et al. 2023).

    The decoder's queries are the embedding layer's output for the vector in place of
    each token. The ordinary tokens of the encoder predict the set of tokens
    (`reconstruction.bag_of_words`).

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of tokens hidden from the encoder.
        decoder_ratio: of tokens hidden from a query of the decoder.
        patterns: different masks of the decoder in a text, at most.
        bag_weight: of the bag of words; 0.1 in the authors' code, 1 in the paper.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; no pattern.
    """
    rule = _Enhanced(ratio, decoder_ratio, patterns, replace, True, bag_weight)
    return _enhanced(cfg, text, rule)


class _Enhanced(NamedTuple):
    """The arguments of `dupmae`, and whether queries pass the embedding layer."""

    ratio: float
    decoder_ratio: float
    patterns: int
    replace: tuple[float, float]
    embedded_queries: bool
    bag_weight: float


def _enhanced(cfg: EncoderConfig, text: TokenizerInfo, rule: _Enhanced) -> Objective:
    """RetroMAE or DupMAE."""
    check_mlm(cfg, text, ratio=rule.ratio, decoder_ratio=rule.decoder_ratio)
    if rule.patterns < 1:
        raise ValueError(
            f"objective.patterns is {rule.patterns}; it should be at least 1"
        )

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        key, params = started(key, cfg, encoder)
        return {**params, "decoder": decoders.init_decoder(key, cfg, 1)}, {}

    return Objective(init, partial(_enhanced_loss, cfg, text, rule))


def _enhanced_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    mask_key, hide_key, dropout_key, decoder_key = jax.random.split(key, 4)
    (mask,) = mlm_masking.mask_whole_words(mask_key, batch, (rule.ratio,))
    size = mlm_masking.buffer_size(mask.shape[1], rule.ratio, text.min_length)
    seen = mask_tokens(hide_key, batch, mask, size, text, rule.replace)
    tokens = batch.tokens._replace(token_ids=seen.token_ids)
    x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    begins = token_ops.first_token_positions(
        tokens.segment_ids, max_documents(mask.shape[1])
    )
    y = enhanced(
        cfg, rule, params, batch, token_ops.gather_tokens(x, begins), decoder_key
    )
    head = partial(heads.apply_mlm_head, params["head"], cfg=cfg)
    parts = [
        PredictedTokens(
            head(token_ops.gather_tokens(x, seen.positions)), seen.labels, seen.valid
        ),
        PredictedTokens(head(y), batch.tokens.token_ids, batch.word_ids > 0),
    ]
    total, [(loss, right), (decoder_loss, _)] = predictions(params, parts, [1.0, 1.0])
    metrics = {"mlm": loss, "decoder": decoder_loss, "accuracy": right}
    metrics["masked"] = masked_fraction(seen.valid, batch)
    if rule.bag_weight:
        table = params["encoder"]["embed"]["token"]["embedding"]
        bias = params["head"]["bias"]
        bag, count = bag_of_words(head(x), table, bias, batch, begins.shape[1])
        metrics["bag"] = bag / jnp.maximum(count, 1.0)
        total += rule.bag_weight * metrics["bag"]
    return LossOutput(total, metrics)


def enhanced(
    cfg: EncoderConfig,
    rule: _Enhanced,
    params: Params,
    batch: PretrainingBatch,
    sentences: Array,
    key: Key,
) -> Array:
    """RetroMAE's enhanced decoding: two streams, and another view for every position.

    Args:
        cfg: the encoder's shape.
        rule: the arguments of the objective.
        params: {"encoder", "head", "decoder"}.
        batch: the texts [R, S], nothing hidden.
        sentences: [R, M, D] vectors of the texts.
        key: of masks and dropout.

    Returns:
        [R, S, D] states of the decoder.
    """
    where = segment_positions(batch.tokens.segment_ids)
    keys = jax.random.split(key, 3)
    sees = visibility(keys[0], batch, rule.decoder_ratio, rule.patterns)
    # One key: where texts begin anywhere in a longer table, queries and keys agree.
    embedded = partial(
        layers.embed_tokens,
        params["encoder"],
        batch.tokens.token_ids,
        where,
        cfg,
        key=keys[1],
    )
    memory = token_ops.replace_first_tokens(embedded(), sentences, where)
    queries = token_ops.spread_over_tokens(sentences, where.segment_ids)
    table = decoders.position_embeddings(params["encoder"], where, cfg, keys[1])
    if rule.embedded_queries:
        queries = embedded(states=queries)
    elif table is not None:
        queries += table

    def decode(queries, memory):
        return decoders.decode(
            params["encoder"],
            params["decoder"],
            queries,
            where,
            cfg,
            kv_inputs=memory,
            extra_mask=sees,
            key=keys[2],
        )

    decode = stack.rematerialize(decode, cfg)
    return decode(queries, memory)


def visibility(key: Key, rows: PretrainingBatch, ratio: float, patterns: int) -> Array:
    """What each position sees in RetroMAE's decoder (Xiao et al. 2022, section 3.2).

    A bank of whole-word masks is drawn for every text; each position takes one of them
    at random, and does not see what that hides, nor itself. The first token is in no
    mask: all but itself see it. (The authors' code draws as many masks as a text has
    tokens, or 256; here the bank is as large for short texts as for long ones.)

    Args:
        key: PRNG key.
        rows: packed texts [R, S].
        ratio: of tokens that a mask hides.
        patterns: masks in the bank, at most S of which are drawn.

    Returns:
        [R, S, S] bool; only entries within a text mean anything.
    """
    bank_key, pick_key = jax.random.split(key)
    r, s = rows.word_ids.shape
    count = min(s, patterns)

    def mask(key):
        return mlm_masking.mask_whole_words(key, rows, (ratio,))[0]

    bank = jax.vmap(mask, out_axes=1)(jax.random.split(bank_key, count))  # [R, K, S]
    pick = jax.random.randint(pick_key, (r, s), 0, count)
    return ~gather_tokens(bank, pick) & ~jnp.eye(s, dtype=bool)[None]
