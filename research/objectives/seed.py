"""SEED-Encoder: a decoder too weak to do without the vector of the text."""

from functools import partial
from typing import NamedTuple

import jax

from research.losses.token_prediction import Predicted, predictions
from research.models import decoders, heads, token_ops
from research.models import encoder as models_encoder
from research.models.attention.masks import weak
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import places
from research.objectives import mlm_masking
from research.objectives.mlm import started
from research.objectives.mlm_masking import BERT_REPLACE, check, hidden, share
from research.types import Array, Key, Objective, Params, Rows, TextInfo, row_texts


def seed(
    cfg: EncoderConfig,
    text: TextInfo,
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
    check(cfg, text, ratio=ratio, weight=weight)
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
    (mask,) = mlm_masking.whole_words(mask_key, batch, (rule.ratio,))
    size = mlm_masking.buffer_size(mask.shape[1], rule.ratio, text.shortest)
    seen = hidden(hide_key, batch, mask, size, text, rule.replace)
    tokens = batch.tokens._replace(ids=seen.ids)
    x, _ = models_encoder.apply(params["encoder"], tokens, cfg, key=dropout_key)
    begins = token_ops.first_places(tokens.segment, row_texts(mask.shape[1]))
    y = continued(
        cfg, params, batch, token_ops.taken(x, begins), rule.window, decoder_key
    )
    states = heads.head(params["head"], token_ops.taken(x, seen.at), cfg)
    segment = batch.tokens.segment
    parts = [
        Predicted(states, seen.labels, seen.real),
        Predicted(
            y[:, :-1],
            batch.tokens.ids[:, 1:],
            (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0),
        ),
    ]
    weights = [1 - rule.weight, rule.weight]
    total, [(loss, right), (decoder, _)] = predictions(params, parts, weights)
    metrics = {"mlm": loss, "decoder": decoder, "accuracy": right}
    return total, {**metrics, "masked": share(seen.real, batch)}


def continued(
    cfg: EncoderConfig,
    params: Params,
    batch: Rows,
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
    where = places(batch.tokens.segment)
    embed_key, key = (None, None) if key is None else jax.random.split(key)
    x = decoders.embedded(
        params["encoder"], batch.tokens.ids, where, cfg, key=embed_key
    )
    x = token_ops.with_sentences(x, sentences, where)
    return decoders.decoded(
        params["encoder"],
        params["decoder"],
        x,
        where,
        cfg,
        sees=weak(window, where, where),
        key=key,
    )
