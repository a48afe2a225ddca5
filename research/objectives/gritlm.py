"""GritLM: one model trained to embed and to generate."""

import dataclasses

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.pooling import basic
from research.objectives.causal import next_tokens
from research.objectives.contrastive import contrastive
from research.types import (
    Batch,
    Key,
    LossOutput,
    Objective,
    Params,
    Pool,
    SizeLoss,
)


def gritlm(
    cfg: EncoderConfig,
    pool: Pool | basic.LearnedPooling,
    nested: SizeLoss,
    *,
    micro_batch: int = 0,
    weight: float = 1.0,
) -> Objective:
    """Embeds with the encoder and speaks with it (GritLM, Muennighoff et al. 2024).

    To the contrastive loss, of tokens that see both sides, the language modelling of
    the same texts is added, of tokens that see only what stands before: the same
    parameters under another mask (equation 3; the authors have other texts for it).

    Args:
        cfg: the encoder's shape, not causal.
        pool, nested, micro_batch: as in `contrastive`; the texts are not language
            modelled by micro-batches.
        weight: of the language modelling, the mean of all predicted tokens.

    Returns:
        an Objective of batches of type Batch, with the metrics of `contrastive`, and
        "contrastive" and "language", the two losses, and "perplexity".

    Raises:
        ValueError: the encoder is causal.
    """
    if cfg.causal:
        raise ValueError(
            "gritlm embeds with an encoder that sees both sides, but encoder.causal is "
            "True"
        )
    embedding = contrastive(cfg, pool, nested, micro_batch=micro_batch)
    speaking = dataclasses.replace(cfg, causal=True)

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        value, metrics, _ = embedding.loss(params, frozen, batch, key)
        key = jax.random.fold_in(key, 1)
        language, _ = next_tokens(params["encoder"], batch.tokens, speaking, key)
        more = {"contrastive": value, "language": language}
        more["perplexity"] = jnp.exp(language)
        return LossOutput(value + weight * language, {**metrics, **more})

    return Objective(embedding.init, loss)
