"""Pre-training objectives: an encoder learns by filling in what was hidden.

Every mean is over all hidden tokens (or texts) of the global batch, so that neither
padding nor devices change it; the authors' programs average each device's micro-batch
by itself. Hidden tokens of the encoder are gathered into a buffer of fixed size, and
nothing else meets the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses import reconstruction
from research.models import encoder, mae, masking
from research.models.config import EncoderConfig
from research.structs import (
    Array,
    Key,
    Metrics,
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
    """
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

    def flat(arrays):
        whole = jnp.concatenate(arrays, 1)
        return whole.reshape(-1, *whole.shape[2:])

    counts = [jnp.maximum(part.real.sum(dtype=jnp.float32), 1.0) for part in parts]
    total, each = reconstruction.cross_entropy(
        flat([part.states for part in parts]),
        params["encoder"]["embed"]["token"]["embedding"],
        params["head"]["bias"],
        flat([part.labels for part in parts]),
        flat(
            [
                part.real.astype(jnp.float32) * (weight / count)
                for part, weight, count in zip(parts, weights, counts, strict=True)
            ]
        ),
    )
    found, start = [], 0
    rows = len(parts[0].real)
    loss, right = each.loss.reshape(rows, -1), each.right.reshape(rows, -1)
    for part, count in zip(parts, counts, strict=True):
        here = slice(start, start + part.real.shape[1])
        start = here.stop
        found.append(
            tuple(
                jnp.where(part.real, x[:, here].astype(jnp.float32), 0.0).sum() / count
                for x in (loss, right)
            )
        )
    return total, found


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
    return key, {"encoder": params, "head": mae.init_head(head_key, cfg)}


def mlm(
    cfg: EncoderConfig,
    text: TextInfo,
    *,
    ratio: float = 0.15,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """Masked language modelling of whole words (BERT, Devlin et al. 2019).

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of hidden tokens.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: the encoder is causal, there is no [MASK], or the ratio is not in
            (0, 1).
    """
    check(cfg, text, ratio=ratio)

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        return started(key, cfg, encoder)[1], {}

    def loss(
        params: Params, frozen: Params, batch: Rows, key: Key
    ) -> tuple[Array, Metrics]:
        del frozen
        mask_key, hide_key, dropout_key = jax.random.split(key, 3)
        (mask,) = masking.whole_words(mask_key, batch, (ratio,))
        size = masking.buffer_size(mask.shape[1], ratio)
        seen = hidden(hide_key, batch, mask, size, text, replace)
        tokens = batch.tokens._replace(ids=seen.ids)
        x, _ = encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
        states = mae.head(params["head"], mae.taken(x, seen.at), cfg)
        part = Predicted(states, seen.labels, seen.real)
        total, [(mean, right)] = predictions(params, [part], [1.0])
        metrics = {"mlm": mean, "accuracy": right, "masked": share(seen.real, batch)}
        return total, metrics

    return Objective(init, loss)
