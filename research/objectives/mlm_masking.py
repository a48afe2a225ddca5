"""Masking of words and tokens for MLM, sampled on the device from a step's key."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models import token_ops
from research.models.config import EncoderConfig
from research.types import Array, Key, PretrainingBatch, TokenizerInfo, max_documents

BERT_REPLACE = (0.8, 0.1)
_FULL_LENGTH = contextvars.ContextVar("full_length_buffers", default=False)


class MaskedTokens(NamedTuple):
    """Rows with some tokens masked.

    Attributes:
        token_ids: [R, S] int32 input ids, with masked tokens replaced.
        positions: [R, P] int32 row positions of the masked tokens.
        valid: [R, P] bool, whether an entry of `positions` is a masked token.
        labels: [R, P] int32, the original tokens at these positions.
    """

    token_ids: Array
    positions: Array
    valid: Array
    labels: Array


def mask_whole_words(
    key: Key,
    batch: PretrainingBatch,
    ratios: Sequence[float],
    *,
    weights: Array | None = None,
) -> tuple[Array, ...]:
    """Masks whole words in nested masks, each with a token budget per text.

    The words of a text are visited in random order. A word is skipped if it exceeds
    what is left of the largest budget; otherwise it is added to the largest mask, and
    then to the smaller masks in descending order until one has too little budget left.
    A budget is max(1, round(ratio * T)), where T counts the tokens of the text with its
    special tokens (Starbucks' SMAE, Wang et al. 2024; with one ratio this is BERT's
    whole-word masking).

    Args:
        key: PRNG key.
        batch: Packed texts [R, S].
        ratios: Shares of masked tokens, in ascending order.
        weights: [R, S] positive sampling weights of tokens; a word's weight is the mean
            over its tokens. None for equal weights.

    Returns:
        [R, S] bool for each ratio, each mask a subset of the next. Special tokens and
        padding are never masked.
    """
    chex.assert_equal_shape([batch.word_ids, batch.tokens.segment_ids])
    r, s = batch.word_ids.shape
    word = jnp.maximum(batch.word_ids, 1) - 1  # [R, S] index of a token's word
    in_word = batch.word_ids > 0
    row = jnp.arange(r, dtype=jnp.int32)[:, None]

    def sum_by_word(values):
        return jnp.zeros((r, s), values.dtype).at[row, word].add(values)

    # [R, W] number of tokens and text of each word; W = S is an upper bound
    length = sum_by_word(in_word.astype(jnp.int32))
    segment_ids = jnp.where(in_word, batch.tokens.segment_ids, 0)
    text = jnp.zeros((r, s), jnp.int32).at[row, word].max(segment_ids)

    # [R, W] random order of the words, by Gumbel noise plus the log of their weights
    rank = jax.random.gumbel(key, (r, s))
    if weights is not None:
        total = sum_by_word(jnp.where(in_word, weights.astype(jnp.float32), 0.0))
        mean = total / jnp.maximum(length, 1).astype(jnp.float32)
        rank += jnp.log(jnp.maximum(mean, 1e-30))
    order = jnp.argsort(jnp.where(length > 0, -rank, jnp.inf), axis=1)

    # For each ratio, the masked words [R, W] in this order, then their tokens [R, S]
    word_masks = _fit_budgets(
        jnp.take_along_axis(length, order, 1),
        jnp.take_along_axis(text, order, 1),
        _text_budgets(batch, ratios),
    )
    inverse_order = jnp.argsort(order, axis=1)
    word_masks = (jnp.take_along_axis(m, inverse_order, 1) for m in word_masks)
    return tuple(jnp.take_along_axis(m, word, 1) & in_word for m in word_masks)


def _text_budgets(batch: PretrainingBatch, ratios: Sequence[float]) -> Array:
    """[ratios, R, M+1] int32 token budget of each text of a row; 0 for padding."""
    length = batch.word_ids.shape[1]
    texts = jnp.arange(max_documents(length) + 1, dtype=jnp.int32)
    in_text = batch.tokens.segment_ids[:, None, :] == texts[None, :, None]
    sizes = in_text.sum(-1, dtype=jnp.int32)  # [R, M+1]
    # Computed in Python floats, so that 0.3 * 15 rounds as in plain Python code.
    table = np.array(
        [[_budget(ratio, n) for n in range(length + 1)] for ratio in ratios], np.int32
    )
    valid = ((texts > 0)[None] & (sizes > 0))[None]
    return jnp.where(valid, jnp.asarray(table)[:, sizes], 0)


def _budget(ratio: float, size: int) -> int:
    """Number of tokens that may be masked in a text of `size` tokens."""
    return max(1, round(ratio * size))


def _fit_budgets(length: Array, text: Array, budgets: Array) -> list[Array]:
    """Whether each word [R, W], in this order, fits each budget: [R, W] bool each."""
    count, _, m = budgets.shape

    def add_word(remaining, word):
        size, segment = word  # [R]
        in_text = jax.nn.one_hot(segment, m, dtype=jnp.int32)  # [R, M+1]
        fits, masked = (size > 0), []
        for budget in reversed(range(count)):  # largest budget first
            fits &= size <= (remaining[budget] * in_text).sum(1)
            masked.append(fits)
        masked = jnp.stack(masked[::-1])  # [ratios, R]
        cost = masked.astype(jnp.int32) * size[None]
        return remaining - cost[:, :, None] * in_text[None], masked

    _, masked = jax.lax.scan(add_word, budgets, (length.T, text.T))
    return [masked[:, j].T for j in range(count)]


def mask_single_tokens(key: Key, batch: PretrainingBatch, ratio: float) -> Array:
    """Masks round(ratio * T) of the T ordinary tokens of each text, as single tokens.

    Args:
        key: PRNG key.
        batch: Packed texts [R, S].
        ratio: Share of masked tokens.

    Returns:
        [R, S] bool.
    """
    chex.assert_equal_shape([batch.word_ids, batch.tokens.segment_ids])
    segment = batch.tokens.segment_ids
    ordinary = batch.word_ids > 0
    rank = jnp.where(ordinary, jax.random.uniform(key, segment.shape), 2.0)
    # [R, S, S] pairs of tokens of one text; [R, S] number of ordinary tokens, and of
    # those with a lower rank
    same_text = (segment[:, :, None] == segment[:, None, :]) & ordinary[:, None, :]
    lower = same_text & (rank[:, None, :] < rank[:, :, None])
    size = same_text.sum(-1, dtype=jnp.int32)
    budgets = [round(ratio * n) for n in range(segment.shape[1] + 1)]
    budget = jnp.asarray(np.array(budgets, np.int32))[size]
    return ordinary & (lower.sum(-1, dtype=jnp.int32) < budget)


def mask_row_tokens(
    key: Key, batch: PretrainingBatch, ratios: Sequence[float]
) -> tuple[Array, ...]:
    """Masks single tokens in nested masks, with budgets per row instead of per text.

    Masks round(ratio * T) of the row's ordinary tokens, where T counts all its tokens.
    The unmasked tokens then always fit a buffer of `unmasked_buffer_size`.

    Args:
        key: PRNG key.
        batch: Packed texts [R, S].
        ratios: Shares of masked tokens, in ascending order.

    Returns:
        [R, S] bool for each ratio, each mask a subset of the next.
    """
    ordinary = batch.word_ids > 0
    # [R, S] random order of the tokens of a row; special tokens and padding come last
    rank = jnp.where(ordinary, jax.random.uniform(key, ordinary.shape), 2.0)
    order = jnp.argsort(jnp.argsort(rank, axis=1), axis=1)  # [R, S]
    size = (batch.tokens.segment_ids > 0).sum(1)  # [R]
    masks = []
    for ratio in ratios:
        budgets = [round(ratio * n) for n in range(ordinary.shape[1] + 1)]
        count = jnp.asarray(np.array(budgets, np.int32))[size]
        masks.append(ordinary & (order < count[:, None]))
    return tuple(masks)


def unmasked_buffer_size(length: int, ratio: float) -> int:
    """Largest number of unmasked tokens in a row of `length` tokens.

    That is what `mask_row_tokens` leaves, at least two special tokens per text.
    """
    return max(length - round(ratio * length), 2 * max_documents(length))


def replace_masked(
    key: Key,
    token_ids: Array,
    mask: Array,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: tuple[int, ...] = (),
    replace: tuple[float, float] = BERT_REPLACE,
) -> Array:
    """Replaces masked tokens by [MASK] or random ones (BERT, Devlin et al. 2019, 3.1).

    Args:
        key: PRNG key.
        token_ids: [R, S] int32.
        mask: [R, S] bool, the masked tokens.
        mask_id: Id of [MASK].
        vocab_size: Number of token ids.
        special_ids: Ids that are never used as random tokens.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Returns:
        [R, S] int32.
    """
    chex.assert_equal_shape([token_ids, mask])
    choice_key, id_key = jax.random.split(key)
    # Ids of ordinary tokens, which may replace a masked token
    ordinary_ids = jnp.asarray(
        np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.asarray(special_ids))
    )
    # [R, S] a random ordinary id, and a number in [0, 1) that decides what is used
    number = jax.random.randint(id_key, token_ids.shape, 0, len(ordinary_ids))
    chance = jax.random.uniform(choice_key, token_ids.shape)
    new_ids = jnp.where(chance < replace[0], mask_id, ordinary_ids[number])
    return jnp.where(mask & (chance < sum(replace)), new_ids, token_ids)


@contextlib.contextmanager
def full_length_buffers() -> Iterator[None]:
    """Context in which buffers of masked tokens are as long as the rows.

    Tracing a step in it measures what gathering the masked tokens saves.
    """
    token = _FULL_LENGTH.set(True)
    try:
        yield
    finally:
        _FULL_LENGTH.reset(token)


def masked_positions(mask: Array, size: int) -> tuple[Array, Array]:
    """Gathers the positions of a mask into a buffer of fixed size.

    Args:
        mask: [R, S] bool, with at most `size` entries per row.
        size: P, the size of the buffer.

    Returns:
        Row positions [R, P] int32, ascending, and whether they are valid, [R, P] bool.
    """
    chex.assert_rank(mask, 2)
    size = mask.shape[1] if _FULL_LENGTH.get() else size
    # A stable sort puts masked positions first, in ascending order
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :size].astype(jnp.int32)
    return order, jnp.take_along_axis(mask, order, 1)


def buffer_size(length: int, ratio: float, min_length: int = 1) -> int:
    """Upper bound of the tokens that `mask_whole_words` masks in a row of `length`.

    Rounding, and the minimum of one token per text, can exceed ratio * T. The bound
    assumes that all texts have the length T for which this excess is largest.

    Args:
        length: S.
        ratio: Share of masked tokens.
        min_length: Smallest number of tokens per text, including special tokens.
    """
    if _FULL_LENGTH.get():
        return length
    sizes = range(min(min_length, length), length + 1)
    excess = max(_budget(ratio, size) - ratio * size for size in sizes)
    bound = ratio * length + max_documents(length) * max(excess, 0.0)
    return min(length, int(bound + 1e-6))


def mask_tokens(
    key: Key,
    batch: PretrainingBatch,
    mask: Array,
    size: int,
    tokenizer: TokenizerInfo,
    replace: tuple[float, float] = BERT_REPLACE,
) -> MaskedTokens:
    """Replaces masked tokens, and gathers their positions and labels.

    Args:
        key: PRNG key.
        batch: Packed texts [R, S].
        mask: [R, S] bool, with at most `size` entries per row.
        size: P, the size of the buffers.
        tokenizer: Properties of the tokenizer.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.

    Raises:
        ValueError: `replace` is not two probabilities.
    """
    if len(replace) != 2 or min(replace) < 0 or sum(replace) > 1:
        raise ValueError(
            f"objective.replace is {tuple(replace)}; it should be two chances, of "
            "[MASK] and of a random token, together at most 1"
        )
    token_ids = replace_masked(
        key,
        batch.tokens.token_ids,
        mask,
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        replace=replace,
    )
    positions, valid = masked_positions(mask, size)
    labels = token_ops.gather_tokens(batch.tokens.token_ids, positions)
    return MaskedTokens(token_ids, positions, valid, labels)


def check_mlm(cfg: EncoderConfig, tokenizer: TokenizerInfo, **ratios: float) -> None:
    """Raises ValueError if the encoder or tokenizer does not fit MLM, or a ratio."""
    if cfg.causal:
        raise ValueError(
            "pre-training by masked tokens needs an encoder that attends to both "
            "sides, but encoder.causal is True"
        )
    if tokenizer.mask_id is None:
        raise ValueError(
            "the vocabulary has no [MASK] token, which pre-training masks words by"
        )
    for name, ratio in ratios.items():
        if not 0 < ratio < 1:
            raise ValueError(f"objective.{name} is {ratio}; it must lie in (0, 1)")


def masked_fraction(valid: Array, batch: PretrainingBatch) -> Array:
    """The share of tokens, including special tokens, that are masked."""
    num_tokens = (batch.tokens.segment_ids > 0).sum(dtype=jnp.float32)
    return valid.sum(dtype=jnp.float32) / jnp.maximum(num_tokens, 1.0)
