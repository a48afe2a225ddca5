"""Next-token prediction: causal language modeling, and masked next-token prediction.

Logits are final hidden states times the output embeddings, without head or bias: the
untied output layer of a language model if there is one, else the token table
(`heads.output_embeddings`).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.losses.token_prediction import (
    PredictedTokens,
    mean_token_losses,
    token_losses,
)
from research.models import encoder, heads, token_ops
from research.models.config import EncoderConfig
from research.models.positions.bias import position_penalty
from research.objectives import mlm_masking
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import init_params
from research.objectives.mlm_masking import BERT_REPLACE, masked_fraction
from research.types import (
    Array,
    Key,
    LossOutput,
    Metrics,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
    Tokens,
)


class NextTokenLosses(NamedTuple):
    """Losses of the predictions of the next token, each [R, S-1].

    Attributes:
        loss: float32 cross-entropy, in nats; 0 for the last token of a text.
        correct: bool, whether the next token has the largest logit.
        valid: bool, whether a token of the same text follows.
    """

    loss: Array
    correct: Array
    valid: Array


def has_next_token(segment_ids: Array) -> Array:
    """Whether the next token is in the same text: [R, S] int32 -> [R, S-1] bool."""
    chex.assert_rank(segment_ids, 2)
    # Padding has segment id 0
    same_text = segment_ids[:, 1:] == segment_ids[:, :-1]
    return same_text & (segment_ids[:, 1:] > 0)


def next_token_loss(
    params: Params, tokens: Tokens, cfg: EncoderConfig, key: Key | None = None
) -> tuple[Array, NextTokenLosses]:
    """Language modeling loss of packed rows; a text is predicted from itself only.

    Args:
        params: The encoder's parameters.
        tokens: Rows [R, S].
        cfg: The encoder's shape, with causal attention.
        key: Dropout key; None runs without dropout.

    Returns:
        The mean loss, [] float32, over all tokens that are not the first of their text,
        and the losses of the single predictions.
    """
    x, _ = encoder.apply(params, tokens, cfg, key=key)  # [R, S, D]
    return predict_next_tokens(
        params, x, tokens.token_ids, has_next_token(tokens.segment_ids)
    )


def predict_next_tokens(
    params: Params, x: Array, token_ids: Array, valid: Array
) -> tuple[Array, NextTokenLosses]:
    """The loss of predicting each token from the hidden state of the token before it.

    Args:
        params: The encoder's parameters.
        x: [R, S, D] final hidden states.
        token_ids: [R, S] int32.
        valid: [R, S-1] bool, which predictions count.

    Returns:
        The mean loss, [] float32, 0 if no prediction counts; and the losses of the
        single predictions.
    """
    # The state of token i predicts token i + 1
    part = PredictedTokens(x[:, :-1], token_ids[:, 1:], valid)
    mean, [losses] = token_losses(heads.output_embeddings(params), None, [part])
    token_loss = jnp.where(valid, losses.loss, 0.0)
    return mean, NextTokenLosses(token_loss, losses.correct, valid)


def language_metrics(mean: Array, losses: NextTokenLosses) -> Metrics:
    """Perplexity per token, and the share of tokens that are predicted correctly."""
    count = jnp.maximum(losses.valid.sum(dtype=jnp.float32), 1.0)
    correct = (losses.correct & losses.valid).sum(dtype=jnp.float32)
    return {"perplexity": jnp.exp(mean), "accuracy": correct / count}


@reads_rows
def causal_lm(cfg: EncoderConfig, tokenizer: TokenizerInfo) -> Objective:
    """Causal language modeling: predicts every token from the text before it.

    Args:
        cfg: The encoder's shape.
        tokenizer: Not used; objectives on rows share this signature.

    Returns:
        An Objective whose batches are PretrainingBatch, with the metrics perplexity
        and accuracy (over the predicted tokens).

    Raises:
        ValueError: The encoder is not causal.
    """
    del tokenizer
    if not cfg.causal:
        raise ValueError(
            "causal_lm needs an encoder whose tokens attend to earlier ones only, but "
            "encoder.causal is False"
        )

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        return init_params(key, cfg, encoder_params, mlm_head=False)[0], {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        mean, losses = next_token_loss(params["encoder"], batch.tokens, cfg, key)
        total = mean + position_penalty(key, params["encoder"], cfg)
        return LossOutput(total, language_metrics(mean, losses))

    return Objective(init, loss)


@reads_rows
def mntp(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    ratio: float = 0.2,
    replace: tuple[float, float] = BERT_REPLACE,
    mask_id: int = -1,
) -> Objective:
    """Masked next-token prediction (LLM2Vec, BehnamGhader et al. 2024, section 2.2).

    Adapts a decoder to bidirectional attention: a masked token is predicted from the
    hidden state of the token before it, as in the decoder's pre-training. The first
    token of a text is never masked, because no token precedes it. The authors use ratio
    0.2 and replace (0.8, 0.1) for Llama, 0.8 and (1, 0) for Mistral.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        ratio: Share of a text's ordinary tokens that are masked, as single tokens
            rather than whole words.
        replace: Probabilities of the mask token and of a random token for a masked
            token; it is unchanged otherwise.
        mask_id: Id of the mask token; -1 for the tokenizer's mask token or, without
            one, its "_".

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: The encoder is causal, the ratio is not in (0, 1), or there is no
            mask token.
    """
    if cfg.causal:
        raise ValueError(
            "mntp needs an encoder that attends to both sides, but encoder.causal is "
            "True"
        )
    if not 0 < ratio < 1:
        raise ValueError(f"objective.ratio is {ratio}; it must lie in (0, 1)")
    mask_token = _resolve_mask_id(tokenizer, mask_id)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        return init_params(key, cfg, encoder_params, mlm_head=False)[0], {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        mask_key, replace_key, dropout_key = jax.random.split(key, 3)

        # [R, S] masked tokens, each with a token of its text before it
        mask = mlm_masking.mask_single_tokens(mask_key, batch, ratio)
        mask = drop_first_tokens(mask, batch.tokens.segment_ids)
        token_ids = mlm_masking.replace_masked(
            replace_key,
            batch.tokens.token_ids,
            mask,
            mask_id=mask_token,
            vocab_size=tokenizer.vocab_size,
            special_ids=tokenizer.special_ids,
            replace=replace,
        )
        # [R, S, D] hidden states of the masked rows
        tokens = batch.tokens._replace(token_ids=token_ids)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)

        # [R, P, D] hidden states of the tokens before the masked ones
        size = mlm_masking.buffer_size(mask.shape[1], ratio, tokenizer.min_length)
        positions, valid = mlm_masking.masked_positions(mask, size)
        states = token_ops.gather_tokens(x, jnp.maximum(positions - 1, 0))
        labels = token_ops.gather_tokens(batch.tokens.token_ids, positions)

        # Cross-entropy over the vocabulary, without head or bias
        part = PredictedTokens(states, labels, valid)
        table = heads.output_embeddings(params["encoder"])
        total, [means] = mean_token_losses(table, None, [part])
        total += position_penalty(key, params["encoder"], cfg)
        metrics = {
            "accuracy": means.accuracy,
            "masked": masked_fraction(valid, batch),
        }
        return LossOutput(total, metrics)

    return Objective(init, loss)


def drop_first_tokens(mask: Array, segment_ids: Array) -> Array:
    """Removes the first token of each text from a mask [R, S]."""
    chex.assert_equal_shape([mask, segment_ids])
    return mask & jnp.pad(has_next_token(segment_ids), ((0, 0), (1, 0)))


def _resolve_mask_id(tokenizer: TokenizerInfo, mask_id: int) -> int:
    """The given id if it is not negative; else that of [MASK], else that of "_"."""
    candidates = [
        mask_id if mask_id >= 0 else None,
        tokenizer.mask_id,
        tokenizer.blank_id,
    ]
    token_id = next((number for number in candidates if number is not None), None)
    if token_id is None:
        raise ValueError(
            "the vocabulary has neither a mask token nor '_' to mask words by; "
            "objective.mask_id can name another"
        )
    if token_id >= tokenizer.vocab_size:
        raise ValueError(
            f"objective.mask_id is {token_id}; the vocabulary has 0 ... "
            f"{tokenizer.vocab_size - 1}"
        )
    return token_id
