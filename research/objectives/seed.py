"""SEED-Encoder: a decoder too weak to do without the vector of the text."""

from functools import partial
from typing import NamedTuple

import jax

from research.losses.token_prediction import PredictedTokens, predictions
from research.models import decoders, heads, layers, token_ops
from research.models import encoder as models_encoder
from research.models.attention.masks import decoder_mask
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.mlm import started
from research.objectives.mlm_masking import (
    BERT_REPLACE,
    check_mlm,
    mask_tokens,
    masked_fraction,
)
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


def seed(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    ratio: float = 0.15,
    depth: int = 3,
    window: int = 2,
    weight: float = 0.5,
    replace: tuple[float, float] = BERT_REPLACE,
) -> Objective:
    """MLM, and the text word by word from its vector (SEED-Encoder, Lu et al. 2021).

    Each token of the text is predicted from the last few before it and the vector,
    which stands in the place of [CLS], in sight of all; in the authors' code it is a
    memory of one vector, of which attention makes the same for every query. The output
    layer is the token table (and the head's bias), without the head's dense layer.
    Released models have 3 blocks with a window of 2, or 1 with a window of 8.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        ratio: of tokens hidden from the encoder.
        depth: blocks of the decoder.
        window: the tokens that one sees in a block, itself included.
        weight: of the decoder's loss; the MLM's is 1 less it.
        replace: the chances of [MASK] and of a random token; the rest is kept.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; no block, or no window.
    """
    check_mlm(cfg, text, ratio=ratio, weight=weight)
    if depth < 1 or window < 1:
        raise ValueError(
            f"objective.depth is {depth} and objective.window {window}; both should be "
            "at least 1"
        )
    rule = _Weak(ratio, window, weight, replace)

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        key, params = started(key, cfg, encoder)
        return {**params, "decoder": decoders.init_decoder(key, cfg, depth)}, {}

    return Objective(init, partial(_seed_loss, cfg, text, rule))


class _Weak(NamedTuple):
    """The arguments of `seed`."""

    ratio: float
    window: int
    weight: float
    replace: tuple[float, float]


def _seed_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    mask_key, hide_key, dropout_key, decoder_key = jax.random.split(key, 4)
    (mask,) = mlm_masking.mask_whole_words(mask_key, batch, (rule.ratio,))
    size = mlm_masking.buffer_size(mask.shape[1], rule.ratio, text.min_length)
    seen = mask_tokens(hide_key, batch, mask, size, text, rule.replace)
    tokens = batch.tokens._replace(token_ids=seen.token_ids)
    x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    begins = token_ops.first_token_positions(
        tokens.segment_ids, max_documents(mask.shape[1])
    )
    y = continued(
        cfg, params, batch, token_ops.gather_tokens(x, begins), rule.window, decoder_key
    )
    states = heads.apply_mlm_head(
        params["head"], token_ops.gather_tokens(x, seen.positions), cfg
    )
    segment = batch.tokens.segment_ids
    parts = [
        PredictedTokens(states, seen.labels, seen.valid),
        PredictedTokens(
            y[:, :-1],
            batch.tokens.token_ids[:, 1:],
            (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0),
        ),
    ]
    weights = [1 - rule.weight, rule.weight]
    total, [(loss, right), (decoder, _)] = predictions(params, parts, weights)
    metrics = {"mlm": loss, "decoder": decoder, "accuracy": right}
    metrics["masked"] = masked_fraction(seen.valid, batch)
    return LossOutput(total, metrics)


def continued(
    cfg: EncoderConfig,
    params: Params,
    batch: PretrainingBatch,
    sentences: Array,
    window: int,
    key: Key | None,
) -> Array:
    """States of the weak decoder, from each of which the next token is predicted.

    Args:
        cfg: the encoder's shape.
        params: {"encoder", "decoder"}.
        batch: the texts [R, S], nothing hidden.
        sentences: [R, M, D] vectors of the texts.
        window: the tokens that one sees, itself included.
        key: dropout key; None runs without.

    Returns:
        [R, S, D].
    """
    where = segment_positions(batch.tokens.segment_ids)
    embed_key, key = (None, None) if key is None else jax.random.split(key)
    x = layers.embed_tokens(
        params["encoder"], batch.tokens.token_ids, where, cfg, key=embed_key
    )
    x = token_ops.replace_first_tokens(x, sentences, where)
    return decoders.decode(
        params["encoder"],
        params["decoder"],
        x,
        where,
        cfg,
        extra_mask=decoder_mask(window, where, where),
        key=key,
    )
