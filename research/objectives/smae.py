"""Starbucks pre-training (SMAE): masked autoencoding at several sizes of an encoder."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from research.losses.token_prediction import PredictedTokens, TokenMeans
from research.models import (
    decoders,
    embedding,
    encoder,
    heads,
    layers,
    stack,
    token_ops,
)
from research.models.config import EncoderConfig
from research.models.positions.bias import position_penalty
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.inputs import reads_rows
from research.objectives.masked_prediction import (
    init_params,
    masked_inputs,
    mlm_losses,
)
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
    Metrics,
    Objective,
    Params,
    PretrainingBatch,
    TokenizerInfo,
    max_documents,
)


@reads_rows
def smae(
    cfg: EncoderConfig,
    tokenizer: TokenizerInfo,
    *,
    pairs: tuple[tuple[int, int], ...],
    ratios: tuple[float, float] = (0.2, 0.4),
    replace: tuple[float, float] = BERT_REPLACE,
    decoder: bool = True,
) -> Objective:
    """Starbucks' masked autoencoding at every size (Wang et al. 2024, SMAE).

    The mean over the sizes (l, d) of (MLM + MAE) / 2. MLM predicts from the first d
    components of block l's hidden states. MAE predicts by a decoder of one block, which
    is initialized as a copy of the encoder's first block. Its input is the text with
    more tokens masked (including those masked in the encoder), with the embedding of
    [CLS] replaced by the head's output for the first d components of block l's state.

    Args:
        cfg: The encoder's shape.
        tokenizer: Properties of the tokenizer.
        pairs: Sizes ((depth, dim), ...); depth counts blocks from 1.
        ratios: Shares of tokens masked in the encoder and in the decoder.
        replace: Probabilities of [MASK] and of a random token for a masked token; it is
            unchanged otherwise.
        decoder: Whether to train with MAE; without it, MLM is still divided by 2.

    Returns:
        An Objective whose batches are PretrainingBatch.

    Raises:
        ValueError: As `mlm`; or the encoder lacks a size, or the decoder's ratio is
            below the encoder's.
    """
    _check_ratios(cfg, tokenizer, ratios)
    _check_sizes(cfg, pairs)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, _ = init_params(key, cfg, encoder_params)
        if decoder:
            params["decoder"] = decoders.copy_decoder(params["encoder"], 1)
        return params, {}

    def loss(
        params: Params, frozen: Params, batch: PretrainingBatch, key: Key
    ) -> LossOutput:
        del frozen
        keys = jax.random.split(key, 4)
        mask_key, replace_key, dropout_key, decoder_key = keys

        # Masked tokens of the encoder and, nested around them, of the decoder
        masks = mlm_masking.mask_whole_words(mask_key, batch, ratios)
        replace_keys = replace_key, jax.random.fold_in(replace_key, 1)
        length = batch.word_ids.shape[1]
        masked, decoder_masked = (
            mask_tokens(
                k,
                batch,
                mask,
                mlm_masking.buffer_size(length, ratio, tokenizer.min_length),
                tokenizer,
                replace,
            )
            for k, mask, ratio in zip(replace_keys, masks, ratios, strict=True)
        )

        # MLM: head states [R, P, D] of each size; MAE: text vectors [N, R, M, D]
        states, text_vectors = size_states(
            params, batch, masked, pairs, dropout_key, cfg
        )
        parts = [PredictedTokens(x, masked.labels, masked.valid) for x in states]
        if decoder:
            states = decode_masked(  # [N, R, P, D]
                params, batch, decoder_masked, text_vectors, decoder_key, cfg
            )
            labels, valid = decoder_masked.labels, decoder_masked.valid
            parts += [PredictedTokens(x, labels, valid) for x in states]
        # All sizes in one pass over the vocabulary
        total, means = mlm_losses(params, parts, [0.5 / len(pairs)] * len(parts))
        total += position_penalty(key, params["encoder"], cfg)

        # Losses of all sizes; the accuracy is that of the last pair
        metrics = _average_sizes("mlm", pairs, means[: len(pairs)])
        if decoder:
            metrics |= _average_sizes("mae", pairs, means[len(pairs) :])
        metrics["accuracy"] = means[len(pairs) - 1].accuracy
        metrics["masked"] = masked_fraction(masked.valid, batch)
        return LossOutput(total, metrics)

    return Objective(init, loss)


def _average_sizes(
    name: str, pairs: Sequence[tuple[int, int]], means: Sequence[TokenMeans]
) -> Metrics:
    """The loss of each size, and their mean, as metrics."""
    losses = {
        f"{name}/{depth}x{width}": mean.loss
        for (depth, width), mean in zip(pairs, means, strict=True)
    }
    return {name: sum(mean.loss for mean in means) / len(pairs), **losses}


def _check_ratios(
    cfg: EncoderConfig, tokenizer: TokenizerInfo, ratios: Sequence[float]
) -> None:
    """Raises ValueError if tokens cannot be masked with these ratios."""
    if len(ratios) != 2:
        raise ValueError(
            f"objective.ratios is {tuple(ratios)}; it should be two: shares of tokens "
            "masked in the encoder and in the decoder"
        )
    # The masks are nested, so the decoder's ratio is the larger one
    small, large = ratios
    check_mlm(cfg, tokenizer, ratios=small)
    check_mlm(cfg, tokenizer, ratios=large)
    if large < small:
        raise ValueError(
            f"objective.ratios masks {large} of the tokens in the decoder, less than "
            f"the {small} of the encoder"
        )


def _check_sizes(cfg: EncoderConfig, pairs: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError if there is no size, or the encoder lacks one."""
    for depth, width in pairs:
        if not (1 <= depth <= cfg.depth and 1 <= width <= cfg.width):
            raise ValueError(
                f"objective.pairs has ({depth}, {width}), but the encoder has "
                f"{cfg.depth} blocks of width {cfg.width}"
            )
    if not pairs:
        raise ValueError("objective.pairs names no size")


def size_states(
    params: Params,
    batch: PretrainingBatch,
    masked: MaskedTokens,
    pairs: Sequence[tuple[int, int]],
    key: Key,
    cfg: EncoderConfig,
) -> tuple[list[Array], Array]:
    """The head's states of masked tokens and of the texts' first tokens, at each size.

    Args:
        params: {"encoder", "head"}.
        batch: The texts [R, S].
        masked: Masked tokens of the encoder.
        pairs: The N sizes.
        key: Dropout key.
        cfg: The encoder's shape.

    Returns:
        N arrays [R, P, D] for masked tokens, and [N, R, M, D] for first tokens.
    """
    # [R, P+M] row positions; only states of these tokens are stored for every layer
    first_tokens = token_ops.first_token_positions(
        batch.tokens.segment_ids, max_documents(batch.word_ids.shape[1])
    )
    positions = jnp.concatenate([masked.positions, first_tokens], 1)

    def gather_states(x, _):
        x = layers.apply_final_norm(params["encoder"], x, cfg)
        return token_ops.gather_tokens(x, positions)

    # [L+1, R, P+M, D] states after the final norm, and N of [R, P+M, D] after the head
    _, layer_states = encoder.apply(
        params["encoder"], masked_inputs(batch, masked), cfg, gather_states, key=key
    )
    states = [
        heads.apply_mlm_head(params["head"], layer_states[depth][..., :width], cfg)
        for depth, width in pairs
    ]
    size = masked.positions.shape[1]
    text_vectors = jnp.stack([x[:, size:] for x in states])
    return [x[:, :size] for x in states], text_vectors


def decode_masked(
    params: Params,
    batch: PretrainingBatch,
    masked: MaskedTokens,
    text_vectors: Array,
    key: Key,
    cfg: EncoderConfig,
) -> Array:
    """The decoder's states of masked tokens after the head, for each size's vectors.

    Args:
        params: {"encoder", "head", "decoder"}.
        batch: The texts [R, S].
        masked: Masked tokens of the decoder.
        text_vectors: [N, R, M, D] vectors of the texts.
        key: Dropout key.
        cfg: The encoder's shape.

    Returns:
        [N, R, P, D].
    """
    chex.assert_rank(text_vectors, 4)
    positions = segment_positions(batch.tokens.segment_ids)
    embed_key, key = jax.random.split(key)
    embedded = embedding.embed_tokens(  # [R, S, D]
        params["encoder"], masked.token_ids, positions, cfg, key=embed_key
    )

    def decode_size(inputs):
        vectors, key = inputs  # [R, M, D]
        x = token_ops.replace_first_tokens(embedded, vectors, positions)
        x = decoders.decode(
            params["encoder"],
            params["decoder"],
            x,
            positions,
            cfg,
            query_positions=masked.positions,
            key=key,
        )
        return heads.apply_mlm_head(params["head"], x, cfg)

    # One size at a time
    keys = jax.random.split(key, len(text_vectors))
    return jax.lax.map(stack.rematerialize(decode_size, cfg), (text_vectors, keys))
