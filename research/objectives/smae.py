"""Starbucks' pre-training: masked autoencoding at every size of an encoder."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.losses.token_prediction import PredictedTokens, predictions
from research.models import decoders, heads, layers, stack, token_ops
from research.models import encoder as models_encoder
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.mlm import started
from research.objectives.mlm_masking import (
    BERT_REPLACE,
    MaskedTokens,
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


def smae(
    cfg: EncoderConfig,
    text: TokenizerInfo,
    *,
    pairs: tuple[tuple[int, int], ...],
    ratios: tuple[float, float] = (0.2, 0.4),
    replace: tuple[float, float] = BERT_REPLACE,
    decoder: bool = True,
) -> Objective:
    """Starbucks' masked autoencoding at every size (Wang et al. 2024, SMAE).

    The mean over the sizes (l, d) of (MLM + MAE) / 2. MLM reads the first d components
    of block l's states; MAE gives a decoder of one block, which begins as a copy of the
    encoder's first, the text with more hidden (what the encoder's input hides is hidden
    there too), and in place of [CLS] what the head makes of block l's first d
    components there.

    Args:
        cfg: the encoder's shape.
        text: the tokenizer's ids.
        pairs: the sizes, ((depth, dim), ...); depth counts blocks from 1.
        ratios: of tokens hidden from the encoder and from the decoder.
        replace: the chances of [MASK] and of a random token; the rest is kept.
        decoder: False leaves out the MAE, not the division by 2.

    Returns:
        an Objective of batches of type Rows.

    Raises:
        ValueError: as `mlm`; a size that the encoder lacks; a decoder that has less
            hidden than the encoder.
    """
    _check_ratios(cfg, text, ratios)
    _check_sizes(cfg, pairs)
    rule = _Starbucks(tuple(tuple(pair) for pair in pairs), ratios, replace, decoder)

    def init(key: Key, encoder: Params | None = None) -> tuple[Params, Params]:
        _, params = started(key, cfg, encoder)
        if decoder:
            params["decoder"] = decoders.copy_decoder(params["encoder"], 1)
        return params, {}

    return Objective(init, partial(_smae_loss, cfg, text, rule))


def _check_ratios(
    cfg: EncoderConfig, text: TokenizerInfo, ratios: Sequence[float]
) -> None:
    """Raises ValueError where tokens cannot be hidden in these ratios."""
    if len(ratios) != 2:
        raise ValueError(
            f"objective.ratios is {tuple(ratios)}; it should be two: of tokens hidden "
            "from the encoder and from the decoder"
        )
    small, large = ratios
    check_mlm(cfg, text, ratios=small)
    check_mlm(cfg, text, ratios=large)
    if large < small:
        raise ValueError(
            f"objective.ratios hides {large} of the tokens from the decoder, less than "
            f"the {small} of the encoder"
        )


def _check_sizes(cfg: EncoderConfig, pairs: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError where there is no size, or one that the encoder lacks."""
    for depth, width in pairs:
        if not (1 <= depth <= cfg.depth and 1 <= width <= cfg.width):
            raise ValueError(
                f"objective.pairs has ({depth}, {width}), but the encoder has "
                f"{cfg.depth} blocks of width {cfg.width}"
            )
    if not pairs:
        raise ValueError("objective.pairs names no size")


class _Starbucks(NamedTuple):
    """The arguments of `smae`."""

    pairs: tuple[tuple[int, int], ...]
    ratios: tuple[float, float]
    replace: tuple[float, float]
    decoder: bool


def _smae_loss(cfg, text, rule, params, frozen, batch, key):
    """The loss of an Objective; shapes as there."""
    del frozen
    mask_key, hide_key, dropout_key, decoder_key = jax.random.split(key, 4)
    length, pairs = batch.word_ids.shape[1], len(rule.pairs)
    masks = mlm_masking.mask_whole_words(mask_key, batch, rule.ratios)
    sizes = [
        mlm_masking.buffer_size(length, ratio, text.min_length) for ratio in rule.ratios
    ]
    hide_keys = hide_key, jax.random.fold_in(hide_key, 1)
    seen, dark = (
        mask_tokens(k, batch, mask, size, text, rule.replace)
        for k, mask, size in zip(hide_keys, masks, sizes, strict=True)
    )
    begins = token_ops.first_token_positions(
        batch.tokens.segment_ids, max_documents(length)
    )
    at = jnp.concatenate([seen.positions, begins], 1)
    tokens = batch.tokens._replace(token_ids=seen.token_ids)
    _, kept = models_encoder.apply(
        params["encoder"],
        tokens,
        cfg,
        lambda x, _: token_ops.gather_tokens(
            layers.apply_final_norm(params["encoder"], x, cfg), at
        ),
        key=dropout_key,
    )
    states = [
        heads.apply_mlm_head(params["head"], kept[depth][..., :width], cfg)
        for depth, width in rule.pairs
    ]
    parts = [PredictedTokens(x[:, : sizes[0]], seen.labels, seen.valid) for x in states]
    names = ["mlm"]
    if rule.decoder:
        names.append("mae")
        sentences = jnp.stack([x[:, sizes[0] :] for x in states])
        states = reconstructed(cfg, params, batch, dark, sentences, decoder_key)
        parts += [PredictedTokens(x, dark.labels, dark.valid) for x in states]
    total, found = predictions(params, parts, [0.5 / pairs] * len(parts))
    metrics = {
        "accuracy": found[pairs - 1][1],
        "masked": masked_fraction(seen.valid, batch),
    }
    for place, name in enumerate(names):
        losses = [loss for loss, _ in found[place * pairs : (place + 1) * pairs]]
        metrics[name] = sum(losses) / pairs
        for (depth, width), loss in zip(rule.pairs, losses, strict=True):
            metrics[f"{name}/{depth}x{width}"] = loss
    return LossOutput(total, metrics)


def reconstructed(
    cfg: EncoderConfig,
    params: Params,
    batch: PretrainingBatch,
    dark: MaskedTokens,
    sentences: Array,
    key: Key,
) -> Array:
    """What the decoder makes of hidden tokens, once with each of several vectors.

    Args:
        cfg: the encoder's shape.
        params: {"encoder", "head", "decoder"}.
        batch: the texts [R, S].
        dark: the same for the decoder.
        sentences: [N, R, M, D] vectors of the texts.
        key: dropout key.

    Returns:
        [N, R, P, D], after the head.
    """
    where = segment_positions(batch.tokens.segment_ids)
    embed_key, key = jax.random.split(key)
    x = layers.embed_tokens(
        params["encoder"], dark.token_ids, where, cfg, key=embed_key
    )

    def one(parts):
        vectors, key = parts
        y = token_ops.replace_first_tokens(x, vectors, where)
        y = decoders.decode(
            params["encoder"],
            params["decoder"],
            y,
            where,
            cfg,
            query_positions=dark.positions,
            key=key,
        )
        return heads.apply_mlm_head(params["head"], y, cfg)

    one = stack.rematerialize(one, cfg)
    return jax.lax.map(one, (sentences, jax.random.split(key, len(sentences))))
