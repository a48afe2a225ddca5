"""Pooling by the router weights of a mixture of experts (MoEE)."""

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling, last_token_pool
from research.transforms.normalize import l2_normalize
from research.types import Array, Params


def moee(
    *, of: str = "both", scores: str = "softmax", weight: float = 1.0
) -> LearnedPooling:
    """What a text's last token is routed to, beside its state (MoEE, Li & Zhou 2024).

    The routing weights of all blocks, one after the other. With the state after the
    final norm, each of length 1, cosines of the embeddings are (cosine of the states +
    weight * cosine of the routing weights) / (1 + weight), the paper's MoEE (sum).

    Args:
        of: 'both', or 'router' for the routing weights alone.
        scores: 'softmax' as in the paper, or 'logits', which its code takes of most
            models.
        weight: of the routing weights beside the state.
    """
    check_option("pool.of", of, ("both", "router"))
    check_option("pool.scores", scores, ("softmax", "logits"))
    if weight < 0:
        raise ValueError(f"pool.weight is {weight}; it should not be negative")

    def each(x: Array, logits: Array, mask: Array) -> Array:
        z = logits.astype(jnp.float32)
        z = jax.nn.softmax(z) if scores == "softmax" else z
        return jnp.concatenate([last_token_pool(x, mask), last_token_pool(z, mask)], -1)

    def pool(params: Params, cfg: EncoderConfig, layers: Array, mask: Array) -> Array:
        state, routed = layers[-1, ..., : cfg.width], layers[..., cfg.width :]
        routed = jnp.moveaxis(routed, 0, 2).reshape(*state.shape[:2], -1)
        if of == "router":
            return routed
        return jnp.concatenate(
            [l2_normalize(state), weight**0.5 * l2_normalize(routed)], -1
        )

    def width(cfg: EncoderConfig) -> int:
        return cfg.depth * cfg.num_experts + (cfg.width if of == "both" else 0)

    return LearnedPooling(None, pool, pool_layer=each, reads_router=True, width=width)
