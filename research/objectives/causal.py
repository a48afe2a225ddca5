"""Predicting the next token: of decoders, and of decoders made to see both sides.

The logits are final states times the output embeddings, without bias: those of the
model's own output layer, `lm_head`, if the parameters have one, else the token table.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses import token_prediction
from research.models import encoder, heads, token_ops
from research.models.config import EncoderConfig
from research.objectives import mlm_masking
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


class Following(NamedTuple):
    """What the tokens of rows say about the token after them; [R, S-1].

    Attributes:
        loss: float32 cross-entropy, in nats; 0 where no token of the text follows.
        right: bool, whether what follows is the most likely token.
        real: bool, where a token of the same text follows.
    """

    loss: Array
    right: Array
    real: Array


def follows(segment: Array) -> Array:
    """Whether a token's text goes on after it: [R, S] int32 -> [R, S-1] bool."""
    return (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)


def predicted(
    params: Params, states: Array, labels: Array, real: Array
) -> tuple[Array, token_prediction.TokenLosses]:
    """The mean cross-entropy of tokens, by the token table.

    Args:
        params: the encoder's.
        states: [R, P, D], after the final norm.
        labels: [R, P] int32 token ids.
        real: [R, P] bool, which count; the mean is over these.

    Returns:
        the mean [], 0 where none counts, and each token's own loss [R, P], which has no
        gradient.
    """
    weight = real.astype(jnp.float32)
    weight /= jnp.maximum(weight.sum(), 1.0)
    table = heads.output_embeddings(params)
    mean, each = token_prediction.cross_entropy(
        states.reshape(-1, states.shape[-1]),
        table,
        jnp.zeros(len(table), jnp.float32),
        labels.reshape(-1),
        weight.reshape(-1),
    )
    shaped = (x.reshape(real.shape) for x in each)
    return mean, token_prediction.TokenLosses(*shaped)


def next_tokens(
    params: Params, tokens: Tokens, cfg: EncoderConfig, key: Key | None = None
) -> tuple[Array, Following]:
    """Language modelling of rows of texts, each of which is predicted from itself only.

    Args:
        params: the encoder's.
        tokens: rows [R, S].
        cfg: the encoder's shape, which should be causal.
        key: dropout key; None runs without.

    Returns:
        the mean loss [] of the tokens that are not the first of their text, and what
        there is of each token.
    """
    x, _ = encoder.apply(params, tokens, cfg, key=key)
    real = follows(tokens.segment_ids)
    mean, each = predicted(params, x[:, :-1], tokens.token_ids[:, 1:], real)
    return mean, Following(jnp.where(real, each.loss, 0.0), each.correct, real)


def language_metrics(mean: Array, each: Following) -> Metrics:
    """Perplexity by token, and the share of tokens that were the most likely."""
    count = jnp.maximum(each.real.sum(dtype=jnp.float32), 1.0)
    right = (each.right & each.real).sum(dtype=jnp.float32) / count
    return {"perplexity": jnp.exp(mean), "accuracy": right}


def causal_lm(cfg: EncoderConfig, text: TokenizerInfo) -> Objective:
    """Causal language modelling: every token from those before it in its text.

    Args:
        cfg: the encoder's shape.
        text: not used; other objectives of pre-training need it.

    Returns:
        an Objective of batches of type Rows, with the metrics perplexity and accuracy
        (shares of the predicted tokens).

    Raises:
        ValueError: the encoder sees what it should predict.
    """
    del text
    if not cfg.causal:
        raise ValueError(
            "causal_lm needs an encoder that sees only what stands before, but "
            "encoder.causal is False"
        )

    def loss(params: Params, frozen: Params, batch: PretrainingBatch, key: Key):
        del frozen
        mean, each = next_tokens(params["encoder"], batch.tokens, cfg, key)
        return LossOutput(mean, language_metrics(mean, each))

    return Objective(started(cfg), loss)


def mntp(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.2,
    replace: tuple[float, float] = BERT_REPLACE,
    mask_id: int = -1,
) -> Objective:
    """Masked next-token prediction (LLM2Vec, BehnamGhader et al. 2024, section 2.2).

    Of a decoder whose causal mask is taken away: a hidden token is predicted from the
    state of the token before it, as its pre-training did. The first token of a text is
    never hidden, as none stands before it. The authors hide with `ratio` and `replace`
    0.2 and (0.8, 0.1) in Llama, 0.8 and (1, 0) in Mistral.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of a text's ordinary tokens that are hidden, single tokens, not words.
        replace: the chances of the mask token and of a random one; the rest is kept.
        mask_id: the mask token; -1 for the tokenizer's, else its "_".

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: the encoder is causal, the ratio is not in (0, 1), or there is no
            such token.
    """
    if cfg.causal:
        raise ValueError(
            "mntp needs an encoder that sees both sides, but encoder.causal is True"
        )
    if not 0 < ratio < 1:
        raise ValueError(f"objective.ratio is {ratio}; it must lie in (0, 1)")
    rule = _Hiding(ratio, replace, _mask_id(text, mask_id))
    return Objective(started(cfg), partial(_mntp_loss, cfg, text, rule))


class _Hiding(NamedTuple):
    """The arguments of `mntp`."""

    ratio: float
    replace: tuple[float, float]
    mask_id: int


def _mntp_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    mask_key, hide_key, dropout_key = jax.random.split(key, 3)
    mask = mlm_masking.tokens(mask_key, batch, rule.ratio)
    mask = hideable(mask, batch.tokens.segment_ids)
    ids = mlm_masking.replace_masked(
        hide_key,
        batch.tokens.token_ids,
        mask,
        mask_id=rule.mask_id,
        vocab=text.vocab_size,
        special=text.special_ids,
        replace=rule.replace,
    )
    tokens = batch.tokens._replace(token_ids=ids)
    x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    size = mlm_masking.buffer_size(mask.shape[1], rule.ratio, text.min_length)
    at, real = mlm_masking.masked_positions(mask, size)
    states = token_ops.gather_tokens(x, jnp.maximum(at - 1, 0))
    labels = token_ops.gather_tokens(batch.tokens.token_ids, at)
    mean, each = predicted(params["encoder"], states, labels, real)
    count = real.sum(dtype=jnp.float32)
    right = (each.correct & real).sum(dtype=jnp.float32) / jnp.maximum(count, 1.0)
    metrics = {"accuracy": right, "masked": masked_fraction(real, batch)}
    return LossOutput(mean, metrics)


def hideable(mask: Array, segment: Array) -> Array:
    """A mask [R, S] without the tokens that no token of their text stands before."""
    return mask & jnp.pad(follows(segment), ((0, 0), (1, 0)))


def _mask_id(text: TokenizerInfo, wanted: int) -> int:
    known = [wanted if wanted >= 0 else None, text.mask_id, text.blank_id]
    found = next((number for number in known if number is not None), None)
    if found is None:
        raise ValueError(
            "the vocabulary has neither a mask token nor '_' to hide words by; "
            "objective.mask_id can name another"
        )
    if found >= text.vocab_size:
        raise ValueError(
            f"objective.mask_id is {found}; the vocabulary has 0 ... {text.vocab_size - 1}"
        )
    return found


def started(cfg: EncoderConfig):
    """The `init` of an Objective that trains an encoder and nothing else."""

    def init(key: Key, start: Params | None = None) -> tuple[Params, Params]:
        return {"encoder": encoder.init(key, cfg) if start is None else start}, {}

    return init
