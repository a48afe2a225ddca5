"""Pre-training objectives: an encoder learns by filling in what was hidden.

Every mean is over all hidden tokens (or texts) of the global batch, so that neither
padding nor devices change it; the authors' programs average each device's micro-batch
by itself. Hidden tokens of the encoder are gathered into a buffer of fixed size, and
nothing else meets the vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.losses import reconstruction
from research.models import encoder, heads, mae, masking
from research.models.config import EncoderConfig
from research.pretraining import word_weights
from research.structs import (
    Array,
    Key,
    Objective,
    Params,
    Rows,
    TextInfo,
)

BERT_REPLACE = (0.8, 0.1)


class Hidden(NamedTuple):
    """Rows with some tokens hidden.

    Attributes:
        ids: [R, S] int32, what the model sees.
        at: [R, P] int32, places of the hidden tokens in their row.
        real: [R, P] bool, which of these places count.
        labels: [R, P] int32, what stood there.
    """

    ids: Array
    at: Array
    real: Array
    labels: Array


def hidden(
    key: Key,
    rows: Rows,
    mask: Array,
    size: int,
    text: TextInfo,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Hidden:
    """Hides the tokens of a mask.

    Args:
        key: PRNG key.
        rows: packed texts [R, S].
        mask: [R, S] bool, at most `size` of a row.
        size: P, of the buffer.
        text: the tokenizer's ids.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Raises:
        ValueError: these are no two chances.
    """
    if len(replace) != 2 or min(replace) < 0 or sum(replace) > 1:
        raise ValueError(
            f"objective.replace is {tuple(replace)}; it should be two chances, of "
            "[MASK] and of a random token, together at most 1"
        )
    ids = masking.corrupted(
        key,
        rows.tokens.ids,
        mask,
        mask_id=text.mask_id,
        vocab=text.vocab,
        special=text.special,
        replace=replace,
    )
    at, real = masking.gathered(mask, size)
    return Hidden(ids, at, real, mae.taken(rows.tokens.ids, at))


class Predicted(NamedTuple):
    """States from which tokens are predicted; [R, P, ...].

    Attributes:
        states: [R, P, D], after the head.
        labels: [R, P] int32 token ids.
        real: [R, P] bool, which count.
    """

    states: Array
    labels: Array
    real: Array


def predictions(
    params: Params, parts: Sequence[Predicted], weights: Sequence[float]
) -> tuple[Array, list[tuple[Array, Array]]]:
    """The weighted sum of mean cross-entropies, all of them in one pass.

    Args:
        params: {"encoder", "head", ...}.
        parts: what is predicted.
        weights: of the parts' means.

    Returns:
        the sum [], and each part's (mean loss, share of right tokens), which have no
        gradient.
    """
    total, each = token_losses(params, parts, weights)
    return total, list(map(means, parts, each))


def means(part: Predicted, each: reconstruction.TokenLosses) -> tuple[Array, Array]:
    """The mean loss, and the share of right tokens, of a part's real ones."""
    count = jnp.maximum(part.real.sum(dtype=jnp.float32), 1.0)
    loss, right = (
        jnp.where(part.real, x.astype(jnp.float32), 0.0).sum() / count for x in each
    )
    return loss, right


def token_losses(
    params: Params, parts: Sequence[Predicted], weights: Sequence[float]
) -> tuple[Array, list[reconstruction.TokenLosses]]:
    """The same sum, and each part's losses [R, P], real or not."""

    def flat(arrays):
        whole = jnp.concatenate(arrays, 1)
        return whole.reshape(-1, *whole.shape[2:])

    shares = [
        part.real.astype(jnp.float32)
        * (weight / jnp.maximum(part.real.sum(dtype=jnp.float32), 1.0))
        for part, weight in zip(parts, weights, strict=True)
    ]
    total, each = reconstruction.cross_entropy(
        flat([part.states for part in parts]),
        params["encoder"]["embed"]["token"]["embedding"],
        params["head"]["bias"],
        flat([part.labels for part in parts]),
        flat(shares),
    )
    ends = np.cumsum([part.real.shape[1] for part in parts])[:-1]
    values = [jnp.split(x.reshape(len(parts[0].real), -1), ends, 1) for x in each]
    return total, [
        reconstruction.TokenLosses(*part) for part in zip(*values, strict=True)
    ]


def check(cfg: EncoderConfig, text: TextInfo, **ratios: float) -> None:
    """Raises ValueError where tokens cannot be hidden, or not in such a ratio."""
    if cfg.causal:
        raise ValueError(
            "pre-training by hidden tokens needs an encoder that sees both sides, but "
            "encoder.causal is True"
        )
    if text.mask_id is None:
        raise ValueError(
            "the vocabulary has no [MASK] token, which pre-training hides words by"
        )
    for name, ratio in ratios.items():
        if not 0 < ratio < 1:
            raise ValueError(f"objective.{name} is {ratio}; it must lie in (0, 1)")


def share(real: Array, rows: Rows) -> Array:
    """The share of the texts' tokens (special ones too) that is hidden."""
    tokens = (rows.tokens.segment > 0).sum(dtype=jnp.float32)
    return real.sum(dtype=jnp.float32) / jnp.maximum(tokens, 1.0)


def started(
    key: Key, cfg: EncoderConfig, params: Params | None
) -> tuple[Key, dict[str, Params]]:
    """A key, and the encoder (random unless given) with its head."""
    encoder_key, head_key, key = jax.random.split(key, 3)
    params = encoder.init(encoder_key, cfg) if params is None else params
    return key, {"encoder": params, "head": heads.init_head(head_key, cfg)}


def mlm(
    cfg: EncoderConfig,
    text: TextInfo,
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
    check(cfg, text, ratio=ratio)
    fixed = None
    if word_weights.checked(weighting, text) == "frequency":
        fixed = word_weights.of_frequency(text.counts, power)
    rule = _Masked(ratio, replace, fixed, power)

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        frozen = {}
        if weighting == "loss":
            frozen["losses"] = word_weights.running_losses(text.vocab)
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
        weights = jnp.asarray(weights)[batch.tokens.ids]
    (mask,) = masking.whole_words(mask_key, batch, (rule.ratio,), weights=weights)
    size = masking.buffer_size(mask.shape[1], rule.ratio, text.shortest)
    seen = hidden(hide_key, batch, mask, size, text, rule.replace)
    tokens = batch.tokens._replace(ids=seen.ids)
    x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    states = heads.head(params["head"], mae.taken(x, seen.at), cfg)
    part = Predicted(states, seen.labels, seen.real)
    total, [each] = token_losses(params, [part], [1.0])
    mean, right = means(part, each)
    metrics = {"mlm": mean, "accuracy": right, "masked": share(seen.real, batch)}
    if "losses" in frozen:
        losses = word_weights.updated(
            frozen["losses"], seen.labels, each.loss, seen.real
        )
        metrics["frozen"] = {"losses": losses}
    return total, metrics
