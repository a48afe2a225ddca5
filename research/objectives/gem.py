"""GEM: a language model learns to put what it has read into special tokens."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models import encoder
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import segment_positions
from research.objectives.causal import (
    Following,
    follows,
    language_metrics,
    predicted,
    started,
)
from research.types import (
    Array,
    Key,
    LossOutput,
    Objective,
    PretrainingBatch,
    TokenizerInfo,
    max_documents,
)


def gem(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    count: int = 1,
    ratio: float = 0.5,
    token_id: int = -1,
) -> Objective:
    """Next tokens, part of them from what special tokens keep (GEM, Zhang et al. 2025).

    `count` special tokens stand somewhere within a text. What follows them sees them
    and itself, but not what stands before; they see that, and not each other. The
    first of them is then an embedding of what it follows: the token that ends a text.
    Here they take the places of tokens, which nothing predicts; the paper inserts them.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        count: of special tokens.
        ratio: of texts that are divided; the others keep the language model.
        token_id: the special tokens; -1 for the tokenizer's end token.

    Returns:
        an Objective of batches of type Rows, with the metrics perplexity and accuracy,
        of all predicted tokens and ("after/...") of those after the special ones.

    Raises:
        ValueError: the encoder is not causal, there is no such token, the count is
            below 1, or the ratio is not in (0, 1].
    """
    if not cfg.causal:
        raise ValueError("gem needs a causal encoder, but encoder.causal is False")
    if count < 1 or not 0 < ratio <= 1:
        raise ValueError(
            f"objective.count is {count} and ratio {ratio}; allowed: at least 1, and "
            "(0, 1]"
        )
    found = text.end_id if token_id < 0 else token_id
    if found is None or found >= text.vocab_size:
        raise ValueError(
            f"objective.token_id is {token_id}; allowed: 0 ... {text.vocab_size - 1}, or -1 "
            "for an end token, if the tokenizer has one"
        )
    rule = _Division(count, ratio, found)
    return Objective(started(cfg), partial(_gem_loss, cfg, rule))


class _Division(NamedTuple):
    """The arguments of `gem`."""

    count: int
    ratio: float
    token_id: int


class Parts(NamedTuple):
    """Which tokens of rows stand where; each [R, S] bool.

    Attributes:
        special: they keep what stands before.
        after: they follow these.
    """

    special: Array
    after: Array


def divided(key: Key, segment: Array, count: int, ratio: float) -> Parts:
    """Where the texts of rows are divided: a token at least stands on each side.

    Args:
        key: PRNG key.
        segment: [R, S] int32, the text of each token.
        count: of special tokens.
        ratio: of texts that are divided, if they are long enough.
    """
    which_key, where_key = jax.random.split(key)
    r, s = segment.shape
    where = segment_positions(segment)
    drawn = (
        jax.random.uniform(k, (r, max_documents(s) + 1)) for k in (which_key, where_key)
    )
    which, at = (jnp.take_along_axis(u, segment, 1) for u in drawn)
    room = where.lengths - count - 1  # places that the special tokens may begin at
    begin = 1 + jnp.floor(at * room.astype(at.dtype)).astype(jnp.int32)
    whole = (which >= ratio) | (room < 1) | (segment == 0)
    begin = jnp.where(whole, s, begin)
    after = where.position_ids >= begin + count
    return Parts((where.position_ids >= begin) & ~after, after)


def visible(parts: Parts) -> Array:
    """Which tokens of its text each may look at, if they stand before: [R, S, S]."""
    special, after = parts
    before = ~special & ~after
    hidden = after[:, :, None] & before[:, None, :]
    apart = special[:, :, None] & special[:, None, :]
    apart &= ~jnp.eye(special.shape[1], dtype=bool)[None]
    return ~(hidden | apart)


def _gem_loss(cfg, rule, params, frozen, batch: PretrainingBatch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    key, dropout_key = jax.random.split(key)
    segment = batch.tokens.segment_ids
    parts = divided(key, segment, rule.count, rule.ratio)
    ids = jnp.where(parts.special, rule.token_id, batch.tokens.token_ids)
    tokens = batch.tokens._replace(token_ids=ids)
    x, _ = encoder.apply(
        params["encoder"], tokens, cfg, extra_mask=visible(parts), key=dropout_key
    )
    real = follows(segment) & ~parts.special[:, 1:]
    mean, each = predicted(params["encoder"], x[:, :-1], ids[:, 1:], real)
    all_of = Following(jnp.where(real, each.loss, 0.0), each.correct, real)
    metrics = language_metrics(mean, all_of)
    later = real & parts.after[:, 1:]
    count = jnp.maximum(later.sum(dtype=jnp.float32), 1.0)
    loss = jnp.where(later, each.loss, 0.0).sum() / count
    some = language_metrics(loss, all_of._replace(real=later))
    metrics |= {f"after/{name}": value for name, value in some.items()}
    return LossOutput(mean, metrics)
