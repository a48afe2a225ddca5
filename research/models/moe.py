"""Feed-forward layers of experts, and what their routers say of a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT
from research.types import Array


class Kernel(nn.Module):
    """A parameter named "kernel" and nothing else."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Array:
        """The kernel."""
        return self.param("kernel", KERNEL_INIT, self.shape)


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
            Kernel((cfg.num_experts, *shape), name=name)().astype(x.dtype)
            for name, shape in (("gate", into), ("up", into), ("down", out))
        )
        most, chosen = jax.lax.top_k(logits, cfg.experts_per_token)
        weight = jax.nn.softmax(most.astype(jnp.float32)).reshape(-1)
        chosen = chosen.reshape(-1)
        # Tokens in the order of their experts, each as often as it has some.
        order = jnp.argsort(chosen)
        token = order // cfg.experts_per_token
        sizes = jnp.bincount(chosen, length=cfg.num_experts).astype(jnp.int32)
        rows = x[token]
        inner = act(jax.lax.ragged_dot(rows, gate, sizes))
        inner *= jax.lax.ragged_dot(rows, up, sizes)
        y = jax.lax.ragged_dot(inner, down, sizes)
        y *= weight[order].astype(y.dtype)[:, None]
        return jnp.zeros_like(x).at[token].add(y)
