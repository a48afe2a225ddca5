"""Masked language modeling of whole words (BERT), optionally weighted.

Losses are means over all masked tokens (or texts) of the global batch, independent of
padding and the number of devices; the authors' programs average each device's
micro-batch separately. Logits are computed for masked tokens only, which are gathered
into a buffer of fixed size.
"""

import jax
import jax.numpy as jnp

from research.losses.token_prediction import average_tokens, token_losses
from research.models import encoder
from research.models.config import EncoderConfig
from research.models.positions.bias import position_penalty
from research.objectives import word_weights
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import (
    init_params,
    mask_batch,
    masked_inputs,
    mlm_output,
    predict_masked,
)
from research.objectives.mlm_masking import BERT_REPLACE, check_mlm, masked_fraction
from research.types import (
    Key,
    LossOutput,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
)


@reads_rows
def mlm(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.15,
    replace: tuple[float, float] = BERT_REPLACE,
    weighting: str = "none",
    power: float = 0.5,
) -> Objective:
    """Masked language modeling of whole words (BERT, Devlin et al. 2019).

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer, including token counts.
        ratio: Share of masked tokens.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.
        weighting: Weights with which words are sampled (Zhang et al. 2023): "none" for
            equal weights; "frequency" for count^-power of a token; "loss" for
            loss^power, where loss is a running mean per token
            (`word_weights.update_losses`). The weight of a word is the mean over its
            tokens.
        power: Exponent of the weights.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: The encoder is causal, there is no [MASK], the ratio is not in
            (0, 1), or the weighting is unknown.
    """
    check_mlm(cfg, tokenizer, ratio=ratio)
    word_weights.check_weighting(weighting, tokenizer)
    fixed_weights = None  # [V]
    # Fixed weights are computed once on the host
    if weighting == "frequency":
        fixed_weights = word_weights.frequency_weights(tokenizer.token_counts, power)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, _ = init_params(key, cfg, encoder_params)
        frozen = {}
        if weighting == "loss":
            frozen["losses"] = word_weights.initial_losses(tokenizer.vocab_size)
        return params, frozen

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        mask_key, replace_key, dropout_key = jax.random.split(key, 3)

        # [R, S] weight of each token, looked up in a table [V]
        weights = fixed_weights
        if weighting == "loss":
            weights = frozen["losses"] ** power
        if weights is not None:
            weights = jnp.asarray(weights)[batch.tokens.token_ids]

        # [R, S, D] hidden states of the masked rows
        masked = mask_batch(
            mask_key, replace_key, batch, ratio, tokenizer, replace, weights=weights
        )
        tokens = masked_inputs(batch, masked)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)

        # Cross-entropy of the masked tokens [R, P]
        part = predict_masked(params, x, masked, cfg)
        total, [losses] = token_losses(*mlm_output(params), [part])
        means = average_tokens(part, losses)
        metrics = {
            "mlm": means.loss,
            "accuracy": means.accuracy,
            "masked": masked_fraction(masked.valid, batch),
        }
        total += position_penalty(key, params["encoder"], cfg)
        if weighting != "loss":
            return LossOutput(total, metrics)
        # [V] running losses, the weights of the next step
        running_losses = word_weights.update_losses(
            frozen["losses"], masked.labels, losses.loss, masked.valid
        )
        return LossOutput(total, metrics, {"losses": running_losses})

    return Objective(init, loss)
