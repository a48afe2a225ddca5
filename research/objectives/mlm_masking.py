"""Masks of masked-autoencoder pre-training, drawn on the device from a step's key."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models import token_ops
from research.models.config import EncoderConfig
from research.types import Array, Key, PretrainingBatch, TokenizerInfo, max_documents

BERT_REPLACE = (0.8, 0.1)


class MaskedTokens(NamedTuple):
    """Rows with some tokens hidden.

    Attributes:
        ids: [R, S] int32, what the model sees.
        at: [R, P] int32, places of the hidden tokens in their row.
        real: [R, P] bool, which of these places count.
        labels: [R, P] int32, what stood there.
    """

    token_ids: Array
    positions: Array
    valid: Array
    labels: Array


def mask_whole_words(
    key: Key,
    rows: PretrainingBatch,
    ratios: Sequence[float],
    *,
    weights: Array | None = None,
) -> tuple[Array, ...]:
    """Nested masks of whole words, each within its budget of every text.

    The words of a text come in random order. One is skipped if it would overflow the
    largest budget; else it joins the largest mask, and each smaller one in turn until
    one that it would overflow. A budget is max(1, round(ratio * T)), T the tokens of
    the text with its special ones (Starbucks' SMAE, Wang et al. 2024; with one ratio
    the whole-word masking of BERT).

    Args:
        key: PRNG key.
        rows: packed texts [R, S].
        ratios: of masked tokens, in ascending order.
        weights: [R, S] positive chance of each token's word to come early, relative to
            the others' (the mean over its tokens); None for equal chances.

    Returns:
        [R, S] bool for each ratio, every one a subset of the next. Special tokens and
        padding are in none.
    """
    r, s = rows.word_ids.shape
    number = jnp.maximum(rows.word_ids, 1) - 1
    in_word = rows.word_ids > 0
    line = jnp.arange(r, dtype=jnp.int32)[:, None]

    def per_word(values):
        return jnp.zeros((r, s), values.dtype).at[line, number].add(values)

    length = per_word(in_word.astype(jnp.int32))
    text = jnp.zeros((r, s), jnp.int32)
    text = text.at[line, number].max(jnp.where(in_word, rows.tokens.segment_ids, 0))
    rank = jax.random.gumbel(key, (r, s))
    if weights is not None:
        total = per_word(jnp.where(in_word, weights.astype(jnp.float32), 0.0))
        mean = total / jnp.maximum(length, 1).astype(jnp.float32)
        rank += jnp.log(jnp.maximum(mean, 1e-30))
    order = jnp.argsort(jnp.where(length > 0, -rank, jnp.inf), axis=1)
    chosen = _within_budgets(
        jnp.take_along_axis(length, order, 1),
        jnp.take_along_axis(text, order, 1),
        _budgets(rows, ratios),
    )
    back = jnp.argsort(order, axis=1)
    words = (jnp.take_along_axis(mask, back, 1) for mask in chosen)
    return tuple(jnp.take_along_axis(w, number, 1) & in_word for w in words)


def _budgets(rows: PretrainingBatch, ratios: Sequence[float]) -> Array:
    """[ratios, R, M+1] int32 tokens that each text of a row may lose; 0 for padding."""
    length = rows.word_ids.shape[1]
    texts = jnp.arange(max_documents(length) + 1, dtype=jnp.int32)
    hits = rows.tokens.segment_ids[:, None, :] == texts[None, :, None]
    sizes = hits.sum(-1, dtype=jnp.int32)
    # Of host floats: 0.3 * 15 tokens rounds here as it does for everyone else.
    table = np.array(
        [[_budget(ratio, n) for n in range(length + 1)] for ratio in ratios], np.int32
    )
    real = ((texts > 0)[None] & (sizes > 0))[None]
    return jnp.where(real, jnp.asarray(table)[:, sizes], 0)


def _budget(ratio: float, size: int) -> int:
    """How many tokens a text of `size` may lose."""
    return max(1, round(ratio * size))


def _within_budgets(length: Array, text: Array, budgets: Array) -> list[Array]:
    """Which of the words [R, W], taken in this order, fit each budget: [R, W] bool."""
    count, r, m = budgets.shape

    def step(left, word):
        size, of = word  # [R]
        here = jax.nn.one_hot(of, m, dtype=jnp.int32)  # [R, M+1]
        fits, takes = (size > 0), []
        for room in reversed(range(count)):
            fits &= size <= (left[room] * here).sum(1)
            takes.append(fits)
        taken = jnp.stack(takes[::-1])  # [ratios, R]
        spent = taken.astype(jnp.int32) * size[None]
        return left - spent[:, :, None] * here[None], taken

    _, taken = jax.lax.scan(step, budgets, (length.T, text.T))
    return [taken[:, j].T for j in range(count)]


def tokens(
    key: Key, rows: PretrainingBatch, ratio: float, *, first: bool = False
) -> Array:
    """A mask of single tokens: round(ratio * T) of each text, T its ordinary tokens.

    Args:
        key: PRNG key.
        rows: packed texts [R, S].
        ratio: of masked tokens.
        first: whether special tokens may be masked, and count in T.

    Returns:
        [R, S] bool.
    """
    segment = rows.tokens.segment_ids
    allowed = (segment > 0) if first else rows.word_ids > 0
    rank = jax.random.uniform(key, segment.shape)
    rank = jnp.where(allowed, rank, 2.0)
    same = (segment[:, :, None] == segment[:, None, :]) & allowed[:, None, :]
    before = (same & (rank[:, None, :] < rank[:, :, None])).sum(-1, dtype=jnp.int32)
    size = same.sum(-1, dtype=jnp.int32)
    table = [round(ratio * n) for n in range(segment.shape[1] + 1)]
    return allowed & (before < jnp.asarray(np.array(table, np.int32))[size])


def row_tokens(
    key: Key, rows: PretrainingBatch, ratios: Sequence[float]
) -> tuple[Array, ...]:
    """Nested masks of single tokens, as many of a row as its length says.

    round(ratio * T) of the row's ordinary tokens are masked, T all its tokens: whatever
    texts a row holds, a buffer of `kept_size` has room for the others.

    Args:
        key: PRNG key.
        rows: packed texts [R, S].
        ratios: of masked tokens, in ascending order.

    Returns:
        [R, S] bool for each ratio, every one a subset of the next.
    """
    ordinary = rows.word_ids > 0
    rank = jnp.where(ordinary, jax.random.uniform(key, ordinary.shape), 2.0)
    order = jnp.argsort(jnp.argsort(rank, axis=1), axis=1)
    size = (rows.tokens.segment_ids > 0).sum(1)
    masks = []
    for ratio in ratios:
        table = [round(ratio * n) for n in range(ordinary.shape[1] + 1)]
        count = jnp.asarray(np.array(table, np.int32))[size]
        masks.append(ordinary & (order < count[:, None]))
    return tuple(masks)


def kept_size(length: int, ratio: float) -> int:
    """P, the most tokens that `row_tokens` leaves of a row of `length` tokens.

    At least the two special tokens of every text.
    """
    return max(length - round(ratio * length), 2 * max_documents(length))


def replace_masked(
    key: Key,
    ids: Array,
    mask: Array,
    *,
    mask_id: int,
    vocab: int,
    special: tuple[int, ...] = (),
    replace: tuple[float, float] = (0.8, 0.1),
) -> Array:
    """Token ids with the masked ones replaced (BERT, Devlin et al. 2019, section 3.1).

    Args:
        key: PRNG key.
        ids: [R, S] int32.
        mask: [R, S] bool.
        mask_id: the id of [MASK].
        vocab: how many ids there are.
        special: ids that are never put at random places.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        [R, S] int32.
    """
    choice_key, id_key = jax.random.split(key)
    usual = np.setdiff1d(np.arange(vocab, dtype=np.int32), np.asarray(special))
    random = jnp.asarray(usual)[jax.random.randint(id_key, ids.shape, 0, len(usual))]
    chance = jax.random.uniform(choice_key, ids.shape)
    hidden = jnp.where(chance < replace[0], mask_id, random)
    new = jnp.where(chance < sum(replace), hidden, ids)
    return jnp.where(mask, new, ids)


def masked_positions(mask: Array, size: int) -> tuple[Array, Array]:
    """The places of a mask in a buffer of fixed size.

    Args:
        mask: [R, S] bool, at most `size` of a row.
        size: P.

    Returns:
        positions [R, P] int32 in ascending order, and which of them are real, [R, P].
    """
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :size].astype(jnp.int32)
    return order, jnp.take_along_axis(mask, order, 1)


def buffer_size(length: int, ratio: float, shortest: int = 1) -> int:
    """P, a bound of the tokens that `whole_words` masks in a row of `length` tokens.

    Rounding, and the one token that every text may lose, add most to texts of one
    length: it is taken to be that of all.

    Args:
        length: S.
        ratio: of masked tokens.
        shortest: the fewest tokens of a text, its special ones included.
    """
    sizes = range(min(shortest, length), length + 1)
    more = max(_budget(ratio, size) - ratio * size for size in sizes)
    most = ratio * length + max_documents(length) * max(more, 0.0)
    return min(length, int(most + 1e-6))


def mask_tokens(
    key: Key,
    rows: PretrainingBatch,
    mask: Array,
    size: int,
    text: TokenizerInfo,
    replace: tuple[float, float] = BERT_REPLACE,
) -> MaskedTokens:
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
    ids = replace_masked(
        key,
        rows.tokens.token_ids,
        mask,
        mask_id=text.mask_id,
        vocab=text.vocab_size,
        special=text.special_ids,
        replace=replace,
    )
    at, real = masked_positions(mask, size)
    return MaskedTokens(
        ids, at, real, token_ops.gather_tokens(rows.tokens.token_ids, at)
    )


def check_mlm(cfg: EncoderConfig, text: TokenizerInfo, **ratios: float) -> None:
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


def masked_fraction(real: Array, rows: PretrainingBatch) -> Array:
    """The share of the texts' tokens (special ones too) that is hidden."""
    tokens = (rows.tokens.segment_ids > 0).sum(dtype=jnp.float32)
    return real.sum(dtype=jnp.float32) / jnp.maximum(tokens, 1.0)
