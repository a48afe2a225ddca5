"""Pre-training objectives: an encoder learns by filling in what was hidden.

Every mean is over all hidden tokens (or texts) of the global batch, so that neither
padding nor devices change it; the authors' programs average each device's micro-batch
by itself. Hidden tokens of the encoder are gathered into a buffer of fixed size, and
nothing else meets the vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.losses.token_prediction import PredictedTokens, means, token_losses
from research.models import encoder as models_encoder
from research.models import heads, token_ops
from research.models.config import EncoderConfig
from research.objectives import mlm_masking, word_weights
from research.objectives.mlm_masking import (
    BERT_REPLACE,
    check_mlm,
    mask_tokens,
    masked_fraction,
)
from research.types import Key, LossOutput, Objective, Params, TokenizerInfo


def started(
    key: Key, cfg: EncoderConfig, params: Params | None
) -> tuple[Key, dict[str, Params]]:
    """A key, and the encoder (random unless given) with its head."""
    encoder_key, head_key, key = jax.random.split(key, 3)
    params = models_encoder.init(encoder_key, cfg) if params is None else params
    return key, {"encoder": params, "head": heads.init_mlm_head(head_key, cfg)}


def mlm(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.15,
    replace: tuple[float, float] = BERT_REPLACE,
    weighting: str = "none",
    power: float = 0.5,
) -> Objective:
    """Masked language modelling of whole words (BERT, Devlin et al. 2019).

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids, and counts.
        ratio: of hidden tokens.
        replace: the chances of [MASK] and of a random token; the rest is kept.
        weighting: which words are hidden first (Zhang et al. 2023): 'none' says that
            all are alike; with 'frequency' a token weighs count^-power, with 'loss' the
            running mean of what it costs to predict it (`word_weights.updated`) to the
            power. A word weighs the mean of its tokens.
        power: of the weighting.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: the encoder is causal, there is no [MASK], the ratio is not in
            (0, 1), or an unknown weighting.
    """
    check_mlm(cfg, text, ratio=ratio)
    fixed = None
    if word_weights.checked(weighting, text) == "frequency":
        fixed = word_weights.of_frequency(text.token_counts, power)
    rule = _Masked(ratio, replace, fixed, power)

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        frozen = {}
        if weighting == "loss":
            frozen["losses"] = word_weights.running_losses(text.vocab_size)
        return started(key, cfg, encoder)[1], frozen

    return Objective(init, partial(_mlm_loss, cfg, text, rule))


class _Masked(NamedTuple):
    """The arguments of `mlm`; `fixed` are weights [V] that do not change, or None."""

    ratio: float
    replace: tuple[float, float]
    fixed: np.ndarray | None
    power: float


def _mlm_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    mask_key, hide_key, dropout_key = jax.random.split(key, 3)
    weights = rule.fixed
    if "losses" in frozen:
        weights = frozen["losses"] ** rule.power
    if weights is not None:
        weights = jnp.asarray(weights)[batch.tokens.token_ids]
    (mask,) = mlm_masking.mask_whole_words(
        mask_key, batch, (rule.ratio,), weights=weights
    )
    size = mlm_masking.buffer_size(mask.shape[1], rule.ratio, text.min_length)
    seen = mask_tokens(hide_key, batch, mask, size, text, rule.replace)
    tokens = batch.tokens._replace(token_ids=seen.token_ids)
    x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    states = heads.apply_mlm_head(
        params["head"], token_ops.gather_tokens(x, seen.positions), cfg
    )
    part = PredictedTokens(states, seen.labels, seen.valid)
    total, [each] = token_losses(params, [part], [1.0])
    mean, right = means(part, each)
    metrics = {
        "mlm": mean,
        "accuracy": right,
        "masked": masked_fraction(seen.valid, batch),
    }
    if "losses" in frozen:
        losses = word_weights.updated(
            frozen["losses"], seen.labels, each.loss, seen.valid
        )
        return LossOutput(total, metrics, {"losses": losses})
    return LossOutput(total, metrics)
