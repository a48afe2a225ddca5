"""Pooling of router weights of a mixture of experts (MoEE, Li & Zhou 2024)."""

import chex
import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling, last_token_pool
from research.transforms.normalize import l2_normalize
from research.types import Array, Params

ROUTER_SCORES = ("softmax", "logits")


def moee(
    *, include_state: bool = True, scores: str = "softmax", weight: float = 1.0
) -> LearnedPooling:
    """The last token's state and its router weights in all blocks (MoEE).

    The state, after the final norm, and the concatenated router weights are each L2
    normalized. Cosines of the embeddings are then (cosine of the states + weight *
    cosine of the router weights) / (1 + weight), the paper's MoEE (sum).

    Args:
        include_state: Whether to include the state; without it the vector has router
            weights only.
        scores: "softmax" as in the paper, or "logits", as in its code for most models.
        weight: Weight of the router weights; the state has weight 1.
    """
    check_option("pool.scores", scores, ROUTER_SCORES)

    def pool_layer(tokens: Array, logits: Array, mask: Array) -> Array:
        # [B, S, D] states and [B, S, experts] logits -> [B, M, D + experts]
        router = logits.astype(jnp.float32)
        router = jax.nn.softmax(router) if scores == "softmax" else router
        vectors = last_token_pool(tokens, mask), last_token_pool(router, mask)
        return jnp.concatenate(vectors, -1)

    def pool(params: Params, cfg: EncoderConfig, layers: Array, mask: Array) -> Array:
        chex.assert_rank(layers, 4)
        state = layers[-1, ..., : cfg.width]  # [B, M, D]
        # [L, B, M, experts] -> [B, M, L * experts]
        router = jnp.moveaxis(layers[..., cfg.width :], 0, 2)
        router = router.reshape(*state.shape[:2], -1)
        if not include_state:
            return router
        parts = l2_normalize(state), weight**0.5 * l2_normalize(router)
        return jnp.concatenate(parts, -1)

    def compute_width(cfg: EncoderConfig) -> int:
        return cfg.depth * cfg.num_experts + (cfg.width if include_state else 0)

    return LearnedPooling(
        None, pool, pool_layer=pool_layer, reads_router=True, width=compute_width
    )
