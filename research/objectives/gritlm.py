"""GritLM: trains embeddings and a causal language model jointly, in one encoder."""

import dataclasses

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling
from research.objectives.causal import next_token_loss
from research.objectives.contrastive import contrastive
from research.objectives.inputs import reads_pairs
from research.types import Batch, Key, LossOutput, Objective, Params, Pool, SizeLoss


@reads_pairs
def gritlm(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    micro_batch: int = 0,
    weight: float = 1.0,
) -> Objective:
    """Trains embeddings and a causal language model (GritLM, Muennighoff et al. 2024).

    The sum of the contrastive loss, with bidirectional attention, and the language
    modeling loss of the same texts, with causal attention; both use the same parameters
    (equation 3; the authors use other texts for language modeling).

    Args:
        cfg: The encoder's shape, not causal.
        pool: As in `contrastive`.
        size_loss: As in `contrastive`.
        micro_batch: As in `contrastive`; the language modeling loss is computed on the
            full batch at once.
        weight: Weight of the language modeling loss, which is a mean over tokens.

    Returns:
        An Objective whose batches are Batch, with the metrics of `contrastive`, the
        two losses "contrastive" and "language", and "perplexity".

    Raises:
        ValueError: The encoder is causal.
    """
    if cfg.causal:
        raise ValueError(
            "gritlm embeds with an encoder that attends to both sides, but "
            "encoder.causal is True"
        )
    # One encoder, with bidirectional and with causal attention
    embedding = contrastive(cfg, pool, size_loss, micro_batch=micro_batch)
    causal_cfg = dataclasses.replace(cfg, causal=True)

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        # Contrastive loss with bidirectional attention, then language modeling
        value, metrics, _ = embedding.loss(params, frozen, batch, key)
        # Independent dropout in the second forward pass
        key = jax.random.fold_in(key, 1)
        language, _ = next_token_loss(params["encoder"], batch.tokens, causal_cfg, key)
        metrics = {
            **metrics,
            "contrastive": value,
            "language": language,
            "perplexity": jnp.exp(language),
        }
        return LossOutput(value + weight * language, metrics)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, frozen = embedding.init(key, encoder_params)
        # The output layer of a language model in which it is not tied
        if encoder_params is not None and "lm_head" in encoder_params:
            lm_head = encoder_params["lm_head"]
            params["encoder"] = {**params["encoder"], "lm_head": lm_head}
        return params, frozen

    return Objective(init, loss)
