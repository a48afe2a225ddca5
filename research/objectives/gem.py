"""GEM: language modeling through special tokens that summarize the preceding text."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.models import encoder
from research.models.config import EncoderConfig
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives.causal import (
    has_next_token,
    language_metrics,
    predict_next_tokens,
)
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import init_params
from research.types import (
    Array,
    Key,
    LossOutput,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
    max_documents,
)


@reads_rows
def gem(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    count: int = 1,
    ratio: float = 0.5,
    token_id: int = -1,
) -> Objective:
    """Language modeling through special tokens in the text (GEM, Zhang et al. 2025).

    `count` special tokens are placed at a random position within a text. Tokens after
    them attend to the special tokens and to each other, but not to tokens before them;
    special tokens attend to the tokens before them, but not to each other. The hidden
    state of a special token is thus trained as an embedding of the text before it; by
    default it is the token that ends a text. Here special tokens replace tokens of the
    text, which are then not predicted; in the paper they are inserted.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        count: Number of special tokens per text.
        ratio: Share of texts with special tokens; the other texts are used for plain
            language modeling.
        token_id: Id of the special tokens; -1 for the tokenizer's end token.

    Returns:
        An Objective whose batches are PretrainingBatch, with the metrics perplexity
        and accuracy over all predicted tokens, and the same as "after/..." over tokens
        after special tokens.

    Raises:
        ValueError: The encoder is not causal, there is no such token, the count is
            below 1, or the ratio is not in (0, 1].
    """
    if not cfg.causal:
        raise ValueError("gem needs a causal encoder, but encoder.causal is False")
    if count < 1 or not 0 < ratio <= 1:
        raise ValueError(
            f"objective.count is {count} and ratio {ratio}; allowed: at least 1, and "
            "(0, 1]"
        )
    special_id = tokenizer.end_id if token_id < 0 else token_id
    if special_id is None or special_id >= tokenizer.vocab_size:
        raise ValueError(
            f"objective.token_id is {token_id}; allowed: 0 ... "
            f"{tokenizer.vocab_size - 1}, or -1 for an end token, if the tokenizer has "
            "one"
        )

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        return init_params(key, cfg, encoder_params, mlm_head=False)[0], {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        step_key = key
        key, dropout_key = jax.random.split(key)
        segment_ids = batch.tokens.segment_ids

        # [R, S, D] hidden states of the rows with special tokens
        division = place_special_tokens(key, segment_ids, count, ratio)
        token_ids = jnp.where(division.special, special_id, batch.tokens.token_ids)
        x, _ = encoder.apply(
            params["encoder"],
            batch.tokens._replace(token_ids=token_ids),
            cfg,
            extra_mask=attention_mask(division),
            key=dropout_key,
        )

        # Mean over all predicted tokens; special tokens are not predicted
        valid = has_next_token(segment_ids) & ~division.special[:, 1:]
        mean, losses = predict_next_tokens(params["encoder"], x, token_ids, valid)
        metrics = dict(language_metrics(mean, losses))

        # Metrics over the tokens after special tokens
        after = valid & division.after[:, 1:]
        after_count = jnp.maximum(after.sum(dtype=jnp.float32), 1.0)
        after_mean = jnp.where(after, losses.loss, 0.0).sum() / after_count
        after_metrics = language_metrics(after_mean, losses._replace(valid=after))
        metrics |= {f"after/{name}": value for name, value in after_metrics.items()}
        total = mean + position_penalty(step_key, params["encoder"], cfg)
        return LossOutput(total, metrics)

    return Objective(init, loss)


class Division(NamedTuple):
    """How special tokens divide the texts of packed rows; each [R, S] bool.

    Attributes:
        special: Whether a token is a special token, which summarizes those before it.
        after: Whether a token is after the special tokens of its text.
    """

    special: Array
    after: Array


def place_special_tokens(
    key: Key, segment_ids: Array, count: int, ratio: float
) -> Division:
    """Samples where special tokens divide texts, with at least a token on each side.

    Args:
        key: PRNG key.
        segment_ids: [R, S] int32, the text that each token belongs to.
        count: Number of special tokens per text.
        ratio: Share of texts that are divided, among those that are long enough.
    """
    chex.assert_rank(segment_ids, 2)
    text_key, place_key = jax.random.split(key)
    r, s = segment_ids.shape
    positions = segment_positions(segment_ids)

    # [R, S] two uniform random numbers per text, repeated for all of its tokens
    text_draw, place_draw = (
        jnp.take_along_axis(
            jax.random.uniform(k, (r, max_documents(s) + 1)), segment_ids, 1
        )
        for k in (text_key, place_key)
    )

    # [R, S] position of the first special token in the text; s if there is none
    num_places = positions.lengths - count - 1
    start = 1 + jnp.floor(place_draw * num_places.astype(place_draw.dtype))
    undivided = (text_draw >= ratio) | (num_places < 1) | (segment_ids == 0)
    start = jnp.where(undivided, s, start.astype(jnp.int32))

    after = positions.position_ids >= start + count
    return Division((positions.position_ids >= start) & ~after, after)


def attention_mask(division: Division) -> Array:
    """[R, S, S] bool, the pairs that may attend, besides the causal mask."""
    special, after = division
    chex.assert_equal_shape([special, after])
    before = ~special & ~after
    # Tokens after special tokens do not attend to tokens before them
    hidden = after[:, :, None] & before[:, None, :]
    # Special tokens do not attend to each other
    other_special = special[:, :, None] & special[:, None, :]
    other_special &= ~jnp.eye(special.shape[1], dtype=bool)[None]
    return ~(hidden | other_special)
