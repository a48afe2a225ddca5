"""SEED-Encoder: MLM and a weak decoder that depends on the text's embedding."""

import jax

from research.losses.token_prediction import PredictedTokens
from research.models import decoders, embedding, encoder, token_ops
from research.models.attention.masks import decoder_mask
from research.models.config import EncoderConfig
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives.causal import has_next_token
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import (
    decoder_metrics,
    init_params,
    mask_batch,
    masked_inputs,
    mlm_losses,
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
def seed(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.15,
    depth: int = 3,
    window: int = 2,
    weight: float = 0.5,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """MLM, and a weak decoder on the text's vector (SEED-Encoder, Lu et al. 2021).

    Each token of the text is predicted from the last few tokens before it and from the
    text's vector, which replaces the embedding of [CLS] and which all tokens attend to.
    (In the authors' code it is a cross-attention memory of one vector, whose output is
    the same for every query.) The output layer is the token table (and the head's
    bias), without the head's dense layer. Released models have 3 blocks with a window
    of 2, or 1 block with a window of 8.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of tokens masked in the encoder.
        depth: Number of the decoder's blocks.
        window: Number of tokens that a token attends to in a block, itself included.
        weight: Weight of the decoder's loss; the weight of MLM is 1 - weight.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or the depth or the window is below 1.
    """
    check_mlm(cfg, tokenizer, ratio=ratio, weight=weight)
    if depth < 1 or window < 1:
        raise ValueError(
            f"objective.depth is {depth} and objective.window {window}; both should be "
            "at least 1"
        )

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, key = init_params(key, cfg, encoder_params)
        return {**params, "decoder": decoders.init_decoder(key, cfg, depth)}, {}

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
        first_tokens = token_ops.first_token_positions(
            tokens.segment_ids, max_documents(tokens.token_ids.shape[1])
        )
        text_vectors = token_ops.gather_tokens(x, first_tokens)

        # [R, S, D] decoder states, each of which predicts the next token
        y = decode_next_tokens(params, batch, text_vectors, window, decoder_key, cfg)
        # The state of token i predicts token i + 1
        next_tokens = PredictedTokens(
            y[:, :-1],
            batch.tokens.token_ids[:, 1:],
            has_next_token(batch.tokens.segment_ids),
        )
        # MLM and next tokens, in one pass over the vocabulary
        parts = [predict_masked(params, x, masked, cfg), next_tokens]
        total, [mlm, decoded] = mlm_losses(params, parts, [1 - weight, weight])
        total += position_penalty(key, params["encoder"], cfg)
        return LossOutput(total, decoder_metrics(mlm, decoded, masked, batch))

    return Objective(init, loss)


def decode_next_tokens(
    params: Params,
    batch: PretrainingBatch,
    text_vectors: Array,
    window: int,
    key: Key | None,
    cfg: EncoderConfig,
) -> Array:
    """Hidden states of the weak decoder, each of which predicts the next token.

    Args:
        params: {"encoder", "decoder"}.
        batch: The unmasked texts [R, S].
        text_vectors: [R, M, D] vectors of the texts.
        window: Number of tokens that a token attends to, itself included.
        key: Dropout key; None runs without dropout.
        cfg: The encoder's shape.

    Returns:
        [R, S, D].
    """
    positions = segment_positions(batch.tokens.segment_ids)
    embed_key, key = (None, None) if key is None else jax.random.split(key)
    # [R, S, D] embedded text, with the text's vector at the first token
    x = embedding.embed_tokens(
        params["encoder"], batch.tokens.token_ids, positions, cfg, key=embed_key
    )
    x = token_ops.replace_first_tokens(x, text_vectors, positions)
    # Each token attends to the first token and to the last `window` tokens
    return decoders.decode(
        params["encoder"],
        params["decoder"],
        x,
        positions,
        cfg,
        extra_mask=decoder_mask(window, positions, positions),
        key=key,
    )
