"""The layers of the encoder: the transformer block and norms.

They are Linen modules without state or collections: a block returns its keys and values
and the logits of its router beside the hidden states.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.attention.attend import attend
from research.models.attention.inputs import (
    AttentionInputs,
    PrefixKV,
    apply_positions,
)
from research.models.config import EncoderConfig
from research.models.dropout import dropout
from research.models.linear import Linear
from research.models.moe import Experts
from research.sharding import split_hidden
from research.types import Array, Key, Params

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
# Linear layers of a block, and their groups in `EncoderConfig.bias`.
BIAS_GROUPS = {
    "query": "qkv",
    "key": "qkv",
    "value": "qkv",
    "out": "out",
    "gate": "up",
    "up": "up",
    "down": "down",
}
LINEAR_LAYERS = tuple(BIAS_GROUPS)


class PlusOneRMSNorm(nn.Module):
    """RMSNorm with factor 1 + scale, so that scale is initialized to 0 (Gemma)."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalizes the last axis in float32."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
        scale = (1 + scale).reshape((1,) * (x.ndim - 1) + (-1,))
        return (y * scale).astype(self.dtype)


def norm(cfg: EncoderConfig, name: str | None) -> nn.Module:
    """The config's norm over the last axis, with statistics in float32."""
    options = {"epsilon": cfg.norm_eps, "dtype": cfg.compute_dtype, "name": name}
    if cfg.norm == "rms":
        return nn.RMSNorm(**options)
    if cfg.norm == "rms_plus_one":
        return PlusOneRMSNorm(**options)
    return nn.LayerNorm(use_bias=cfg.norm_bias, **options)


def apply_final_norm(params: Params, x: Array, cfg: EncoderConfig) -> Array:
    """Applies the norm after the last block if the family has one; else returns x."""
    if cfg.norm_at == "post":
        return x
    return norm(cfg, None).apply({"params": params["final_norm"]}, x)


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each with a residual sum."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        attn: AttentionInputs,
        *,
        is_local: Array | None = None,
        is_first: Array | None = None,
        kv_inputs: Array | None = None,
        lora: Params | None = None,
        key: Key | None = None,
    ) -> tuple[Array, Array | None, PrefixKV]:
        """Applies the block to hidden states.

        Args:
            x: [B, q, D] hidden states.
            attn: The inputs that all blocks share. Query-side inputs refer to x,
                key-side inputs to `kv_inputs`.
            is_local: [] bool, whether this is a sliding-window block; None if the
                encoder has none.
            is_first: [] bool, whether this is the first block, whose attention input is
                not normalized; None if it is normalized in every block.
            kv_inputs: [B, S, D] inputs of keys and values; None for x.
            lora: Adapters {layer: parameters}, from `linear.lora_params`.
            key: Dropout key; None runs without dropout.

        Returns:
            Hidden states [B, q, D]; the router's logits [B, q, E], None without
            experts; keys and values [B, S, ...] of the block's own tokens.
        """
        cfg, lora = self.cfg, lora or {}
        attention_key, residual_key, mlp_key = _split_key(key, 3)
        attention_norm, mlp_norm = norm(cfg, "attention_norm"), norm(cfg, "mlp_norm")

        def attention_input(x):
            if cfg.norm_at == "post":
                return x
            y = attention_norm(x)
            return y if is_first is None else jnp.where(is_first, x, y)

        def finish_sublayer(y, norm_name, key):
            if cfg.norm_at == "sandwich":
                y = norm(cfg, norm_name)(y)
            return dropout(y, cfg.dropout, key)

        # [B, q, D] attention sublayer
        q_inputs = attention_input(x)
        kv_inputs = q_inputs if kv_inputs is None else attention_input(kv_inputs)
        y, kv = self.attention(q_inputs, kv_inputs, attn, is_local, lora, attention_key)
        y = finish_sublayer(y, "attention_post_norm", residual_key)
        # [B, q, D] residual sum, and the input of the feed-forward layer
        if cfg.norm_at == "post":
            x = mlp_input = attention_norm(x + y)
        elif cfg.norm_at == "parallel":
            mlp_input = mlp_norm(x)
            x = x + y
        else:
            x = x + y
            mlp_input = mlp_norm(x)
        # [B, q, D] feed-forward layer and its residual sum
        y, router_logits = self.mlp(mlp_input, attn.adapter_ids, lora, mlp_key)
        x = x + finish_sublayer(y, "mlp_post_norm", mlp_key)
        return mlp_norm(x) if cfg.norm_at == "post" else x, router_logits, kv

    def attention(self, q_inputs, kv_inputs, attn, is_local, lora, key):
        """Multi-head attention of [B, q, D] to [B, S, D] and a cached prefix, if any.

        Returns:
            Output [B, q, D], and the keys and values of `kv_inputs`.
        """
        cfg = self.cfg
        linear = partial(self.linear, lora=lora, adapter_ids=attn.adapter_ids, key=key)

        def project(x, name, heads):  # [B, S, D] -> [B, S, heads, E]
            y = linear(name, (heads, cfg.head_dim), _flatten_rows(x))
            return y.reshape(*x.shape[:2], heads, cfg.head_dim)

        # [B, q, H, E] queries, [B, S, KV, E] keys and values; 'model' splits the heads
        q_inputs, kv_inputs = (
            split_hidden(x, tokens=False) for x in (q_inputs, kv_inputs)
        )
        q = project(q_inputs, "query", cfg.num_heads)
        k = project(kv_inputs, "key", cfg.num_kv_heads)
        v = project(kv_inputs, "value", cfg.num_kv_heads)
        if cfg.qk_norm:
            q, k = norm(cfg, "query_norm")(q), norm(cfg, "key_norm")(k)
        q, k = apply_positions(cfg, q, k, attn, is_local)  # one per RoPE branch
        kv = PrefixKV(k[0], v)
        if attn.prefix_kv is not None:  # [B, P+S, KV, E]
            k = (_prepend_rows(attn.prefix_kv.key, k[0]),)
            v = _prepend_rows(attn.prefix_kv.value, v)
        # [B, q, H, E] -> [B, q, D]
        y = attend(cfg, q, k, v, attn, is_local=is_local, key=key)
        y = linear("out", (cfg.width,), _flatten_rows(y), axes=2)
        return split_hidden(y.reshape(q_inputs.shape)), kv

    def mlp(self, x, adapter_ids, lora, key):
        """Feed-forward layer, gated or not, or a mixture of experts.

        Returns:
            Output [B, S, D], and the router's logits [B, S, experts] or None.
        """
        cfg = self.cfg
        linear = partial(self.linear, lora=lora, adapter_ids=adapter_ids, key=key)
        act = ACTIVATIONS[cfg.act]
        rows = _flatten_rows(split_hidden(x, tokens=False))
        if cfg.num_experts:
            # Mixture of experts: [B*S, D] -> [B*S, D]
            router = Linear((cfg.num_experts,), False, cfg.compute_dtype, name="router")
            logits = router(rows)  # [B*S, experts]
            y = Experts(cfg, name="experts")(rows, logits, act)
            return y.reshape(x.shape), logits.reshape(*x.shape[:2], -1)
        # Feed-forward layer: [B*S, D] -> [B*S, F] -> [B*S, D]
        y = linear("up", (cfg.mlp,), rows)
        y = act(linear("gate", (cfg.mlp,), rows)) * y if cfg.gated else act(y)
        return split_hidden(linear("down", (cfg.width,), y).reshape(x.shape)), None

    def linear(self, name, features, rows, *, lora, adapter_ids, key, axes=1):
        """Applies a linear layer to the tokens of all rows.

        Args:
            name: Name of the layer, one of LINEAR_LAYERS.
            features: Shape of the output for one token.
            rows: [B*S, ...] inputs.
            lora: Adapters of the block.
            adapter_ids: [B, S] int32 or None, as in `AttentionInputs`.
            key: Dropout key of the sublayer; None runs without dropout.
            axes: Number of trailing axes of `rows` that are contracted.

        Returns:
            [B*S, *features].
        """
        layer = Linear(
            features,
            use_bias=BIAS_GROUPS[name] in self.cfg.bias,
            dtype=self.cfg.compute_dtype,
            axes=axes,
            name=name,
        )
        if adapter_ids is not None:
            adapter_ids = adapter_ids.reshape(-1)
        if key is not None:
            # Each layer has its own key for the dropout of adapter inputs
            key = jax.random.fold_in(key, 1 + LINEAR_LAYERS.index(name))
        return layer(rows, lora.get(name), adapter_ids, key)


def _prepend_rows(prefix: Array, x: Array) -> Array:
    """Prepends [P, ...] to each row of [B, S, ...]: [B, P+S, ...]."""
    prefix = jnp.broadcast_to(prefix[None], (len(x), *prefix.shape))
    return jnp.concatenate([prefix, x], 1)


def _flatten_rows(x: Array) -> Array:
    """[B, S, ...] as [B*S, ...].

    With three axes, XLA on CPU makes transposed copies for the gradient of a kernel,
    which take longer than the matrix product.
    """
    return x.reshape(-1, *x.shape[2:])


def _split_key(key: Key | None, count: int):
    """Splits a key into `count` keys; `count` times None without a key."""
    return (None,) * count if key is None else jax.random.split(key, count)
