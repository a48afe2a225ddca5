"""Feed-forward layers of experts, and what their routers say of a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.checks import check_option
from research.models.config import EncoderConfig
from research.models.linear import INIT
from research.models.pooling import Readout, last
from research.structs import Array, Params
from research.vectors import normalized


class Kernel(nn.Module):
    """A parameter named "kernel" and nothing else."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Array:
        """The kernel."""
        return self.param("kernel", INIT, self.shape)


class Experts(nn.Module):
    """The gated feed-forward layers of a block, of which a token goes through a few.

    The router's `experts_per_token` largest logits choose; their softmax weighs
    (Mixtral, Jiang et al. 2024, section 2.1). No token is dropped, and padding goes
    through experts too.
    """

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, logits: Array, act) -> Array:
        """Maps [N, D], with the router's logits [N, E], to [N, D]."""
        cfg = self.cfg
        into, out = (cfg.width, cfg.mlp), (cfg.mlp, cfg.width)
        gate, up, down = (
            Kernel((cfg.experts, *shape), name=name)().astype(x.dtype)
            for name, shape in (("gate", into), ("up", into), ("down", out))
        )
        most, chosen = jax.lax.top_k(logits, cfg.experts_per_token)
        weight = jax.nn.softmax(most.astype(jnp.float32)).reshape(-1)
        chosen = chosen.reshape(-1)
        # Tokens in the order of their experts, each as often as it has some.
        order = jnp.argsort(chosen)
        token = order // cfg.experts_per_token
        sizes = jnp.bincount(chosen, length=cfg.experts).astype(jnp.int32)
        rows = x[token]
        inner = act(jax.lax.ragged_dot(rows, gate, sizes))
        inner *= jax.lax.ragged_dot(rows, up, sizes)
        y = jax.lax.ragged_dot(inner, down, sizes)
        y *= weight[order].astype(y.dtype)[:, None]
        return jnp.zeros_like(x).at[token].add(y)


def moee(*, of: str = "both", scores: str = "softmax", weight: float = 1.0) -> Readout:
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
        return jnp.concatenate([last(x, mask), last(z, mask)], -1)

    def pool(params: Params, cfg: EncoderConfig, layers: Array, mask: Array) -> Array:
        state, routed = layers[-1, ..., : cfg.width], layers[..., cfg.width :]
        routed = jnp.moveaxis(routed, 0, 2).reshape(*state.shape[:2], -1)
        if of == "router":
            return routed
        return jnp.concatenate(
            [normalized(state), weight**0.5 * normalized(routed)], -1
        )

    def width(cfg: EncoderConfig) -> int:
        return cfg.depth * cfg.experts + (cfg.width if of == "both" else 0)

    return Readout(None, pool, each=each, routed=True, width=width)
