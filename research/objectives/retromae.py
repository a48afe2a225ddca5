"""RetroMAE and DupMAE: MLM and reconstruction of a text from its embedding."""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from research.losses.token_prediction import PredictedTokens, bag_of_words
from research.models import decoders, embedding, encoder, heads, stack, token_ops
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
    """MLM, and reconstruction from the text's vector (RetroMAE, Xiao et al. 2022).

    The decoder is one randomly initialized block. Its queries are the text's vector
    plus the position embedding (the vector alone in an encoder without position table,
    whose blocks encode positions). Its keys and values are the embedding layer's
    output, of which each query attends to a different random subset
    (`decoder_visibility`). Both losses have weight 1.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of tokens masked in the encoder.
        decoder_ratio: Share of tokens that a query of the decoder cannot attend to.
        patterns: Largest number of different masks per text in the decoder.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or `patterns` is below 1.
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
    """RetroMAE, and prediction of the text's bag of words (DupMAE, Xiao et al. 2023).

    The decoder's queries are the embedding layer's output with the text's vector as the
    token embedding at every position. The encoder's states of ordinary tokens also
    predict the set of the text's tokens (`token_prediction.bag_of_words`).

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of tokens masked in the encoder.
        decoder_ratio: Share of tokens that a query of the decoder cannot attend to.
        patterns: Largest number of different masks per text in the decoder.
        bag_weight: Weight of the bag-of-words loss; 0.1 in the authors' code, 1 in the
            paper.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or `patterns` is below 1.
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
    """RetroMAE, or DupMAE with `embed_queries` and `bag_weight`."""
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

        # [R, S, D] hidden states of the masked rows, [R, M, D] of first tokens
        masked = mask_batch(mask_key, replace_key, batch, ratio, tokenizer, replace)
        tokens = masked_inputs(batch, masked)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
        num_texts = max_documents(tokens.token_ids.shape[1])
        first_tokens = token_ops.first_token_positions(tokens.segment_ids, num_texts)
        text_vectors = token_ops.gather_tokens(x, first_tokens)

        # [R, S, D] decoder states, from which every ordinary token is predicted
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
        # MLM and reconstruction, in one pass over the vocabulary
        parts = [
            predict_masked(params, x, masked, cfg),
            PredictedTokens(y, batch.tokens.token_ids, batch.word_ids > 0),
        ]
        total, [mlm, decoded] = mlm_losses(params, parts, [1.0, 1.0])
        metrics = decoder_metrics(mlm, decoded, masked, batch)
        # Bag of words, from the encoder's states
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
    """RetroMAE's enhanced decoding: every position attends to different tokens.

    Args:
        params: {"encoder", "head", "decoder"}.
        batch: The unmasked texts [R, S].
        text_vectors: [R, M, D] vectors of the texts.
        key: PRNG key of masks and dropout.
        cfg: The encoder's shape.
        decoder_ratio: Share of tokens that a query cannot attend to.
        patterns: Largest number of different masks per text.
        embed_queries: Whether queries go through the embedding layer (DupMAE).

    Returns:
        [R, S, D] hidden states of the decoder.
    """
    positions = segment_positions(batch.tokens.segment_ids)
    view_key, embed_key, dropout_key = jax.random.split(key, 3)
    # [R, S, S] pairs that attend
    visible = decoder_visibility(view_key, batch, decoder_ratio, patterns)

    # [R, S, D] inputs of keys and values: the embedded text, with the text's vector at
    # the first token. Queries use the same PRNG key: with an extended position table, a
    # text then begins at the same random position in both.
    embed = partial(
        embedding.embed_tokens,
        params["encoder"],
        batch.tokens.token_ids,
        positions,
        cfg,
        key=embed_key,
    )
    kv_inputs = token_ops.replace_first_tokens(embed(), text_vectors, positions)

    # [R, S, D] queries: the text's vector at every position
    queries = token_ops.spread_over_tokens(text_vectors, positions.segment_ids)
    # [R, S, D] position embeddings, or None
    table = decoders.position_embeddings(params["encoder"], positions, cfg, embed_key)
    # DupMAE embeds the queries, RetroMAE adds position embeddings
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

    Xiao et al. 2022, section 3.2: several whole-word masks are sampled for every text.
    Each position chooses one of them at random, and attends neither to the tokens that
    it masks nor to itself. The first token is never masked: all other positions attend
    to it. (The authors' code samples as many masks as a text has tokens, at most 256;
    here the number does not depend on the length.)

    Args:
        key: PRNG key.
        batch: Packed texts [R, S].
        ratio: Share of tokens in a mask.
        patterns: Number of masks per text; at most S are sampled.

    Returns:
        [R, S, S] bool; only entries within a text are meaningful.
    """
    chex.assert_rank(batch.word_ids, 2)
    masks_key, choice_key = jax.random.split(key)
    r, s = batch.word_ids.shape
    count = min(s, patterns)

    def draw_mask(key):
        return mlm_masking.mask_whole_words(key, batch, (ratio,))[0]

    # [R, K, S] sampled masks; each position chooses one: [R, S, S]
    masks = jax.vmap(draw_mask, out_axes=1)(jax.random.split(masks_key, count))
    choice = jax.random.randint(choice_key, (r, s), 0, count)
    hidden = token_ops.gather_tokens(masks, choice)
    return ~hidden & ~jnp.eye(s, dtype=bool)[None]
