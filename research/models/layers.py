"""The Linen leaves of the encoder: embeddings, the block, its attention and MLP."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.attention.attend import attend
from research.models.attention.dot_product import Scored, Setting, dropout
from research.models.attention.inputs import AttentionInputs, Kind, PrefixKV
from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT, Linear
from research.models.moe import Experts
from research.models.positions.learned import table_rows
from research.models.positions.rope import rotate
from research.models.positions.segment_positions import Positions
from research.types import Array, Key

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class PlusOneRMSNorm(nn.Module):
    """RMSNorm whose scale is kept less 1 (Gemma)."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis in float32."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
        scale = (1 + scale).reshape((1,) * (x.ndim - 1) + (-1,))
        return (y * scale).astype(self.dtype)


def norm(cfg: EncoderConfig, name: str | None) -> nn.Module:
    """The family's normalisation over the last axis; statistics in float32."""
    shared = {"epsilon": cfg.norm_eps, "dtype": cfg.compute_dtype, "name": name}
    if cfg.norm == "rms":
        return nn.RMSNorm(**shared)
    if cfg.norm == "rms_plus_one":
        return PlusOneRMSNorm(**shared)
    return nn.LayerNorm(use_bias=cfg.norm_bias, **shared)


class Embedder(nn.Module):
    """Sum of token, position and type embeddings, normalised: [B, S] -> [B, S, D]."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(
        self,
        ids: Array,
        places: Positions,
        key: Key | None,
        states: Array | None = None,
    ) -> Array:
        """Embeds ids [B, S], or `states` [B, S, D] in their place, at `places`."""
        cfg = self.cfg

        def table(rows, name):
            return nn.Embed(
                rows,
                cfg.width,
                embedding_init=KERNEL_INIT,
                dtype=cfg.compute_dtype,
                name=name,
            )

        x = table(cfg.vocab_size, "token")(ids) if states is None else states
        if cfg.embed_scale != 1 and states is None:
            x = x * jnp.asarray(cfg.embed_scale, x.dtype)
        if cfg.position == "learned":
            rows = cfg.max_len + cfg.position_offset
            where = table_rows(places, cfg, key)
            x = x + table(rows, "position")(where)
        if cfg.type_vocab:
            x = x + table(cfg.type_vocab, "type")(jnp.zeros_like(ids))
        if cfg.embed_norm:
            x = norm(cfg, "norm")(x)
        return dropout(x, cfg.dropout, key)


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each with its residual sum."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        around: AttentionInputs,
        kind: Kind,
        key: Key | None,
        memory: Array | None = None,
        past: PrefixKV | None = None,
    ) -> Array | tuple[Array, PrefixKV]:
        """Maps hidden states [B, q, D] to [B, q, D]; no dropout without a key.

        Keys and values are made of `memory` [B, S, D], or of x where it is None. What
        `around` holds of queries is then for x, the rest for the memory.

        With a `past` all rows see its tokens before their own, if the relation has one
        branch; the past that their own tokens [B, S] make is then returned too.
        """
        cfg = self.cfg
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)

        def attended(x, seen):
            y, own = self.attention(x, seen, around, kind, keys[0], past)
            if cfg.norm_at == "sandwich":
                y = norm(cfg, "attention_post_norm")(y)
            return dropout(y, cfg.dropout, keys[1]), own

        def processed(x):
            y = self.mlp(x, around.adapter_ids, keys[2])
            if cfg.norm_at == "sandwich":
                y = norm(cfg, "mlp_post_norm")(y)
            return dropout(y, cfg.dropout, keys[2])

        attention_norm, mlp_norm = norm(cfg, "attention_norm"), norm(cfg, "mlp_norm")

        def read(x):
            if cfg.norm_at == "post":
                return x
            y = attention_norm(x)
            return y if kind.first is None else jnp.where(kind.first, x, y)

        y = read(x)
        y, own = attended(y, y if memory is None else read(memory))
        if cfg.norm_at == "post":
            x = attention_norm(x + y)
            x = mlp_norm(x + processed(x))
        elif cfg.norm_at == "parallel":
            x = x + y + processed(mlp_norm(x))
        else:
            x = x + y
            x = x + processed(mlp_norm(x))
        return x if past is None else (x, own)

    def attention(self, x, seen, around, kind, key, past):
        """Multi-head attention of [B, q, D] to the past and [B, S, D]."""
        cfg = self.cfg

        def heads(x, name, count):
            shape, rows = (count, cfg.head_dim), _flat(x)
            y = self.linear(name, shape, "qkv", rows, around.adapter_ids, key)
            return y.reshape(*x.shape[:2], count, cfg.head_dim)

        q, k = heads(x, "query", cfg.num_heads), heads(seen, "key", cfg.num_kv_heads)
        v = heads(seen, "value", cfg.num_kv_heads)
        if cfg.qk_norm:
            q, k = norm(cfg, "query_norm")(q), norm(cfg, "key_norm")(k)
        queries, keys = _rotated(cfg, q, k, around, kind.local)
        own = PrefixKV(keys[0], v)
        if past is not None:
            keys, v = (_after(past.key, keys[0]),), _after(past.value, v)
        scored = Scored(around.bias_params, queries, keys, v)
        setting = Setting(around.positions, key, kind.local)
        y = attend(cfg, scored, setting, around.masks)
        rows = _flat(y)
        y = self.linear(
            "out", (cfg.width,), "out", rows, around.adapter_ids, key, axes=2
        )
        return y.reshape(x.shape), own

    def mlp(self, x, adapter, key):
        """Feed-forward layer, gated or not, or experts: [B, S, D] -> [B, S, D]."""
        cfg = self.cfg

        def dense(features, name, group, rows):
            return self.linear(name, (features,), group, rows, adapter, key)

        rows = _flat(x)
        if cfg.num_experts:
            route = Linear((cfg.num_experts,), False, cfg.compute_dtype, name="router")
            logits = route(rows)
            self.sow("routing", "logits", logits.reshape(*x.shape[:2], -1))
            y = Experts(cfg, name="experts")(rows, logits, ACTIVATIONS[cfg.act])
            return y.reshape(x.shape)
        up = dense(cfg.mlp, "up", "up", rows)
        act = ACTIVATIONS[cfg.act]
        y = act(dense(cfg.mlp, "gate", "up", rows)) * up if cfg.gated else act(up)
        return dense(cfg.width, "down", "down", y).reshape(x.shape)

    def linear(self, name, features, group, rows, adapter, key, axes=1):
        """A linear layer over the tokens of [B*S, ...]: [B*S, *features].

        Args:
            name: of its parameters, a key of LINEAR_LAYERS.
            features: the shape of a row of the result.
            group: that of `cfg.bias`.
            rows: [B*S, ...].
            adapter: [B, S] or None, as in `Surroundings`.
            key: of the sublayer; None without dropout.
            axes: how many axes of the rows are one token's.
        """
        key = _folded(key, LINEAR_LAYERS[name])
        adapter = None if adapter is None else adapter.reshape(-1)
        layer = Linear(
            features,
            use_bias=group in self.cfg.bias,
            dtype=self.cfg.compute_dtype,
            axes=axes,
            name=name,
        )
        return layer(rows, adapter, key)


def _rotated(
    cfg: EncoderConfig, q: Array, k: Array, around: AttentionInputs, local: Array | None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Queries, scaled, and keys for each branch of the relation."""
    factor = jnp.asarray(cfg.scale * around.query_scale, jnp.float32).astype(q.dtype)
    q = q * (factor if factor.ndim else factor.reshape(1, 1, 1, 1))
    turns = around.rope
    if around.local_rope is not None:
        # The first branch is the one that a local block uses.
        first = jax.tree.map(
            lambda near, far: jnp.where(local, near, far), around.local_rope, turns[0]
        )
        turns = (first, *turns[1:])
    queries = tuple(rotate(q, *turn.query) for turn in turns) or (q,)
    keys = tuple(rotate(k, *turn.key) for turn in turns) or (k,)
    if around.channels is not None:
        extra = [x.astype(q.dtype) for x in around.channels]
        queries = tuple(jnp.concatenate([x, extra[0]], -1) for x in queries)
        keys = tuple(jnp.concatenate([x, extra[1]], -1) for x in keys)
    return queries, keys


def _after(past: Array, x: Array) -> Array:
    """[P, ...] before each row of [B, S, ...]: [B, P+S, ...]."""
    past = jnp.broadcast_to(past[None], (len(x), *past.shape))
    return jnp.concatenate([past, x], 1)


def _flat(x: Array) -> Array:
    """[B, S, ...] as [B*S, ...].

    From three axes XLA's CPU compiler makes transposed copies for the gradient of a
    kernel, which take longer than the product.
    """
    return x.reshape(-1, *x.shape[2:])


def _folded(key: Key | None, number: int) -> Key | None:
    """Another key, if there is one."""
    return None if key is None else jax.random.fold_in(key, number)


# The linear layers of a block, with the numbers that their dropout keys are folded by.
LINEAR_LAYERS = {
    name: number
    for number, name in enumerate(
        ("query", "key", "value", "out", "gate", "up", "down"), start=1
    )
}
