"""RetroMAE and DupMAE: a decoder that reads little but the text's embedding."""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from research.losses.token_prediction import PredictedTokens, bag_of_words
from research.models import decoders, encoder, heads, layers, stack, token_ops
from research.models.config import EncoderConfig
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import (
    decoder_metrics,
    init_params,
    mask_batch,
    masked_inputs,
    mlm_losses,
    mlm_output,
    predict_masked,
)
from research.objectives.mlm_masking import BERT_REPLACE, check_mlm
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


@reads_rows
def retromae(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.3,
    decoder_ratio: float = 0.5,
    patterns: int = 256,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """MLM, and every token again from the text's vector (RetroMAE, Xiao et al. 2022).

    The decoder is one random block. Its queries are the vector plus the raw position
    embedding (the vector alone in an encoder without a position table, whose blocks
    encode positions themselves); its keys and values are the text's embeddings, of
    which each query attends to others (`decoder_visibility`). Both losses weigh 1.

    Args:
        cfg: The encoder's shape.
        tokenizer: The tokenizer's ids.
        ratio: Share of tokens masked in the encoder.
        decoder_ratio: Share of tokens hidden from a query of the decoder.
        patterns: Largest number of different masks per text in the decoder.
        replace: Chances of [MASK] and of a random token; the remaining ones are kept.

    Returns:
        An Objective of batches of type PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or there is no pattern.
    """
    return _enhanced_decoding(
        cfg,
        tokenizer,
        ratio=ratio,
        decoder_ratio=decoder_ratio,
        patterns=patterns,
        replace=replace,
        embed_queries=False,
        bag_weight=0.0,
    )


@reads_rows
def dupmae(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
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
    (`token_prediction.bag_of_words`).

    Args:
        cfg: The encoder's shape.
        tokenizer: The tokenizer's ids.
        ratio: Share of tokens masked in the encoder.
        decoder_ratio: Share of tokens hidden from a query of the decoder.
        patterns: Largest number of different masks per text in the decoder.
        bag_weight: Weight of the bag of words; 0.1 in the authors' code, 1 in the
            paper.
        replace: Chances of [MASK] and of a random token; the remaining ones are kept.

    Returns:
        An Objective of batches of type PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or there is no pattern.
    """
    return _enhanced_decoding(
        cfg,
        tokenizer,
        ratio=ratio,
        decoder_ratio=decoder_ratio,
        patterns=patterns,
        replace=replace,
        embed_queries=True,
        bag_weight=bag_weight,
    )


def _enhanced_decoding(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float,
    decoder_ratio: float,
    patterns: int,
    replace: tuple[float, float],
    embed_queries: bool,
    bag_weight: float,
) -> Objective:
    """RetroMAE or DupMAE, whose queries pass the embedding layer."""
    check_mlm(cfg, tokenizer, ratio=ratio, decoder_ratio=decoder_ratio)
    if patterns < 1:
        raise ValueError(f"objective.patterns is {patterns}; it should be at least 1")

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, key = init_params(key, cfg, encoder_params)
        return {**params, "decoder": decoders.init_decoder(key, cfg, 1)}, {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        keys = jax.random.split(key, 4)
        mask_key, replace_key, dropout_key, decoder_key = keys

        # [R, S, D] states of the masked rows, [R, M, D] those of first tokens
        masked = mask_batch(mask_key, replace_key, batch, ratio, tokenizer, replace)
        tokens = masked_inputs(batch, masked)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
        num_texts = max_documents(tokens.token_ids.shape[1])
        first_tokens = token_ops.first_token_positions(tokens.segment_ids, num_texts)
        text_vectors = token_ops.gather_tokens(x, first_tokens)

        # MLM, and every ordinary token again from the decoder's states [R, S, D]
        y = decode_enhanced(
            params,
            batch,
            text_vectors,
            decoder_key,
            cfg,
            decoder_ratio=decoder_ratio,
            patterns=patterns,
            embed_queries=embed_queries,
        )
        y = heads.apply_mlm_head(params["head"], y, cfg)
        parts = [
            predict_masked(params, x, masked, cfg),
            PredictedTokens(y, batch.tokens.token_ids, batch.word_ids > 0),
        ]
        total, [mlm, decoded] = mlm_losses(params, parts, [1.0, 1.0])
        metrics = decoder_metrics(mlm, decoded, masked, batch)
        if bag_weight:
            states = heads.apply_mlm_head(params["head"], x, cfg)
            bag, count = bag_of_words(states, *mlm_output(params), batch, num_texts)
            metrics["bag"] = bag / jnp.maximum(count, 1.0)
            total += bag_weight * metrics["bag"]
        total += position_penalty(key, params["encoder"], cfg)
        return LossOutput(total, metrics)

    return Objective(init, loss)


def decode_enhanced(
    params: Params,
    batch: PretrainingBatch,
    text_vectors: Array,
    key: Key,
    cfg: EncoderConfig,
    *,
    decoder_ratio: float,
    patterns: int,
    embed_queries: bool,
) -> Array:
    """RetroMAE's enhanced decoding: two streams, and another view for every position.

    Args:
        params: {"encoder", "head", "decoder"}.
        batch: The texts [R, S], nothing masked.
        text_vectors: [R, M, D].
        key: PRNG key of masks and dropout.
        cfg: The encoder's shape.
        decoder_ratio: Share of tokens hidden from a query.
        patterns: Largest number of different masks per text.
        embed_queries: Whether queries pass the embedding layer (DupMAE).

    Returns:
        [R, S, D] states of the decoder.
    """
    positions = segment_positions(batch.tokens.segment_ids)
    view_key, embed_key, dropout_key = jax.random.split(key, 3)
    visible = decoder_visibility(view_key, batch, decoder_ratio, patterns)

    # [R, S, D] keys and values: the text's embeddings, its vector in the first place.
    # One key: where texts begin anywhere in a longer table, queries and keys agree.
    embed = partial(
        layers.embed_tokens,
        params["encoder"],
        batch.tokens.token_ids,
        positions,
        cfg,
        key=embed_key,
    )
    kv_inputs = token_ops.replace_first_tokens(embed(), text_vectors, positions)

    # [R, S, D] queries: the text's vector at every position
    queries = token_ops.spread_over_tokens(text_vectors, positions.segment_ids)
    table = decoders.position_embeddings(params["encoder"], positions, cfg, embed_key)
    if embed_queries:
        queries = embed(states=queries)
    elif table is not None:
        queries += table

    def decode(queries, kv_inputs):
        return decoders.decode(
            params["encoder"],
            params["decoder"],
            queries,
            positions,
            cfg,
            kv_inputs=kv_inputs,
            extra_mask=visible,
            key=dropout_key,
        )

    return stack.rematerialize(decode, cfg)(queries, kv_inputs)


def decoder_visibility(
    key: Key, batch: PretrainingBatch, ratio: float, patterns: int
) -> Array:
    """Which tokens each position of RetroMAE's decoder attends to.

    Xiao et al. 2022, section 3.2: whole-word masks are drawn for every text; each
    position takes one of them at random, and attends neither to what it masks nor to
    itself. The first token is in no mask: all positions but itself attend to it. (The
    authors' code draws as many masks as a text has tokens, or 256; here short texts
    have as many masks as long ones.)

    Args:
        key: PRNG key.
        batch: Packed texts [R, S].
        ratio: Share of tokens that a mask hides.
        patterns: Number of masks per text, at most S of which are drawn.

    Returns:
        [R, S, S] bool; only entries within a text mean anything.
    """
    chex.assert_rank(batch.word_ids, 2)
    masks_key, choice_key = jax.random.split(key)
    r, s = batch.word_ids.shape
    count = min(s, patterns)

    def draw_mask(key):
        return mlm_masking.mask_whole_words(key, batch, (ratio,))[0]

    # [R, K, S] masks, of which each position takes one: [R, S, S]
    masks = jax.vmap(draw_mask, out_axes=1)(jax.random.split(masks_key, count))
    choice = jax.random.randint(choice_key, (r, s), 0, count)
    hidden = token_ops.gather_tokens(masks, choice)
    return ~hidden & ~jnp.eye(s, dtype=bool)[None]
