"""Mixture-of-experts feed-forward layer (Mixtral, Jiang et al. 2024)."""

from collections.abc import Callable

import chex
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
        """Returns the kernel."""
        return self.param("kernel", KERNEL_INIT, self.shape)


class Experts(nn.Module):
    """Gated feed-forward layers (experts); each token is routed to a few of them.

    The `experts_per_token` largest router logits choose the experts of a token, and the
    softmax of these logits weights them (section 2.1). No token is dropped; padding is
    routed too.
    """

    cfg: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Array, router_logits: Array, act: Callable[[Array], Array]
    ) -> Array:
        """Maps token states [N, D], with router logits [N, E], to [N, D]."""
        cfg = self.cfg
        chex.assert_shape(x, (None, cfg.width))
        chex.assert_shape(router_logits, (len(x), cfg.num_experts))
        # [E, D, F], [E, D, F] and [E, F, D] kernels
        into, out = (cfg.width, cfg.mlp), (cfg.mlp, cfg.width)
        gate, up, down = (
            Kernel((cfg.num_experts, *shape), name=name)().astype(x.dtype)
            for name, shape in (("gate", into), ("up", into), ("down", out))
        )
        # [N, K] experts of each token and their weights
        top_logits, expert_ids = jax.lax.top_k(router_logits, cfg.experts_per_token)
        weights = jax.nn.softmax(top_logits.astype(jnp.float32)).reshape(-1)
        expert_ids = expert_ids.reshape(-1)
        # [N*K] tokens sorted by expert, so that each expert's rows are contiguous
        order = jnp.argsort(expert_ids)
        token_numbers = order // cfg.experts_per_token
        group_sizes = jnp.bincount(expert_ids, length=cfg.num_experts)
        group_sizes = group_sizes.astype(jnp.int32)
        # [N*K, F] and [N*K, D] through the gated layer of each row's expert
        rows = x[token_numbers]
        y = act(jax.lax.ragged_dot(rows, gate, group_sizes))
        y *= jax.lax.ragged_dot(rows, up, group_sizes)
        y = jax.lax.ragged_dot(y, down, group_sizes)
        y *= weights[order].astype(y.dtype)[:, None]
        return jnp.zeros_like(x).at[token_numbers].add(y)  # [N, D]
