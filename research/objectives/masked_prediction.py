"""Steps that objectives share: initial parameters, masked rows, their prediction."""

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
    """The parameters of an encoder and of its prediction head.

    Args:
        key: PRNG key.
        cfg: The encoder's shape.
        encoder_params: Parameters that training starts from; None for random ones.
        mlm_head: Whether there is a head, which is random.

    Returns:
        {"encoder": ..., "head": ...}, and a key for what else the objective trains.
    """
    encoder_key = key
    if mlm_head:
        encoder_key, head_key, key = jax.random.split(key, 3)
    if encoder_params is None:
        encoder_params = encoder.init(encoder_key, cfg)
    params = {"encoder": encoder_params}
    if mlm_head:
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
    """Masks whole words of every text, and gathers them in a buffer.

    Args:
        mask_key: PRNG key of the choice of words.
        replace_key: PRNG key of what stands in their place.
        batch: Packed texts [R, S].
        ratio: Share of masked tokens.
        tokenizer: The tokenizer's ids.
        replace: Chances of [MASK] and of a random token; the remaining ones are kept.
        weights: [R, S] as in `mlm_masking.mask_whole_words`.
    """
    (mask,) = mlm_masking.mask_whole_words(mask_key, batch, (ratio,), weights=weights)
    size = mlm_masking.buffer_size(mask.shape[1], ratio, tokenizer.min_length)
    return mlm_masking.mask_tokens(replace_key, batch, mask, size, tokenizer, replace)


def masked_inputs(batch: PretrainingBatch, masked: MaskedTokens) -> Tokens:
    """The rows as the encoder reads them."""
    return batch.tokens._replace(token_ids=masked.token_ids)


def predict_masked(
    params: Params, x: Array, masked: MaskedTokens, cfg: EncoderConfig
) -> PredictedTokens:
    """The head's prediction of masked tokens, from the encoder's states.

    Args:
        params: {"head", ...}.
        x: [R, S, D] final hidden states.
        masked: What was masked.
        cfg: The encoder's shape.
    """
    states = token_ops.gather_tokens(x, masked.positions)  # [R, P, D]
    states = heads.apply_mlm_head(params["head"], states, cfg)
    return PredictedTokens(states, masked.labels, masked.valid)


def decoder_metrics(
    mlm: TokenMeans, decoded: TokenMeans, masked: MaskedTokens, batch: PretrainingBatch
) -> dict[str, Array]:
    """The metrics of an objective of MLM and a decoder."""
    return {
        "mlm": mlm.loss,
        "decoder": decoded.loss,
        "accuracy": mlm.accuracy,
        "masked": mlm_masking.masked_fraction(masked.valid, batch),
    }


def mlm_output(params: Params) -> tuple[Array, Array]:
    """The token table [V, D] and the head's bias [V], which make logits of states."""
    return params["encoder"]["embed"]["token"]["embedding"], params["head"]["bias"]


def mlm_losses(
    params: Params, parts: list[PredictedTokens], weights: list[float]
) -> tuple[Array, list[TokenMeans]]:
    """`token_prediction.mean_token_losses` by the token table and the head's bias."""
    return token_prediction.mean_token_losses(*mlm_output(params), parts, weights)
