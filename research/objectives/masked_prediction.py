"""Shared steps of MLM objectives: initial parameters, masking, prediction, metrics."""

import jax

from research.losses import token_prediction
from research.losses.token_prediction import PredictedTokens, TokenMeans
from research.models import encoder, heads, token_ops
from research.models.config import EncoderConfig
from research.objectives import mlm_masking
from research.objectives.mlm_masking import MaskedTokens
from research.types import Array, Key, Params, PretrainingBatch, TokenizerInfo, Tokens


def init_params(
    key: Key,
    cfg: EncoderConfig,
    encoder_params: Params | None = None,
    *,
    mlm_head: bool = True,
) -> tuple[dict[str, Params], Key]:
    """Initial parameters of an encoder and its MLM head.

    Args:
        key: PRNG key.
        cfg: The encoder's shape.
        encoder_params: Parameters that training starts from; None for random ones.
        mlm_head: Whether a randomly initialized MLM head replaces the output layer of a
            language model.

    Returns:
        {"encoder": ..., "head": ...}, and a PRNG key for further parameters.
    """
    # Keys for the encoder, for its head, and for the caller
    encoder_key = key
    if mlm_head:
        encoder_key, head_key, key = jax.random.split(key, 3)
    if encoder_params is None:
        encoder_params = encoder.init(encoder_key, cfg)
    params = {"encoder": dict(encoder_params)}
    if mlm_head:
        params["encoder"].pop("lm_head", None)
        params["head"] = heads.init_mlm_head(head_key, cfg)
    return params, key


def mask_batch(
    mask_key: Key,
    replace_key: Key,
    batch: PretrainingBatch,
    ratio: float,
    tokenizer: TokenizerInfo,
    replace: tuple[float, float],
    *,
    weights: Array | None = None,
) -> MaskedTokens:
    """Masks whole words of every text, and gathers the masked tokens.

    Args:
        mask_key: PRNG key for the choice of words.
        replace_key: PRNG key for their replacements.
        batch: Packed texts [R, S].
        ratio: Share of masked tokens.
        tokenizer: Properties of the tokenizer.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.
        weights: [R, S], as in `mlm_masking.mask_whole_words`.
    """
    (mask,) = mlm_masking.mask_whole_words(mask_key, batch, (ratio,), weights=weights)
    # [R, S] masked rows, and buffers [R, P] of the masked tokens
    size = mlm_masking.buffer_size(mask.shape[1], ratio, tokenizer.min_length)
    return mlm_masking.mask_tokens(replace_key, batch, mask, size, tokenizer, replace)


def masked_inputs(batch: PretrainingBatch, masked: MaskedTokens) -> Tokens:
    """The rows with masked tokens replaced, as the encoder reads them."""
    return batch.tokens._replace(token_ids=masked.token_ids)


def predict_masked(
    params: Params, x: Array, masked: MaskedTokens, cfg: EncoderConfig
) -> PredictedTokens:
    """The head's states for masked tokens, from the encoder's hidden states.

    Args:
        params: {"head", ...}.
        x: [R, S, D] final hidden states.
        masked: The masked tokens.
        cfg: The encoder's shape.
    """
    states = token_ops.gather_tokens(x, masked.positions)  # [R, P, D]
    states = heads.apply_mlm_head(params["head"], states, cfg)
    return PredictedTokens(states, masked.labels, masked.valid)


def decoder_metrics(
    mlm: TokenMeans, decoded: TokenMeans, masked: MaskedTokens, batch: PretrainingBatch
) -> dict[str, Array]:
    """Metrics of an objective that combines MLM and a decoder."""
    return {
        "mlm": mlm.loss,
        "decoder": decoded.loss,
        "accuracy": mlm.accuracy,
        "masked": mlm_masking.masked_fraction(masked.valid, batch),
    }


def mlm_output(params: Params) -> tuple[Array, Array]:
    """The token table [V, D] and the head's bias [V], which turn states into logits."""
    return params["encoder"]["embed"]["token"]["embedding"], params["head"]["bias"]


def mlm_losses(
    params: Params, parts: list[PredictedTokens], weights: list[float]
) -> tuple[Array, list[TokenMeans]]:
    """`token_prediction.mean_token_losses` with the token table and the head's bias."""
    return token_prediction.mean_token_losses(*mlm_output(params), parts, weights)
