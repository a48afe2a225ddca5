"""The Linen leaves of the encoder: embeddings, the block, its attention and MLP."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions import rotate
from research.structs import Array, Key

INIT = nn.initializers.normal(0.02)
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def norm(cfg: EncoderConfig, name: str) -> nn.Module:
    """The family's normalisation over the last axis; statistics in float32."""
    if cfg.norm == "rms":
        return nn.RMSNorm(epsilon=cfg.norm_eps, dtype=cfg.compute_dtype, name=name)
    return nn.LayerNorm(
        epsilon=cfg.norm_eps, dtype=cfg.compute_dtype, use_bias=cfg.bias, name=name
    )


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Zeroes entries with probability `rate`, scales the others; identity without key.

    Half-words of a flat draw decide: on CPU 5 times faster than `jax.random.bernoulli`
    of the same shape, which was a quarter of a training step. The rate is exact to
    2^-17.
    """
    if key is None or rate == 0:
        return x
    words = jax.random.bits(key, (-(-x.size // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
    dropped = round(rate * 2**16)
    keep = halves[: x.size].reshape(x.shape) >= dropped
    scale = jnp.asarray(2**16 / (2**16 - dropped), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros_like(x))


class Embedder(nn.Module):
    """Sum of token, position and type embeddings, normalised: [B, S] -> [B, S, D]."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, ids: Array, position: Array, key: Key | None) -> Array:
        """Embeds ids [B, S] that stand at `position` [B, S] of their texts."""
        cfg = self.cfg

        def table(rows, name):
            return nn.Embed(
                rows, cfg.width, embedding_init=INIT, dtype=cfg.compute_dtype, name=name
            )

        x = table(cfg.vocab, "token")(ids)
        if cfg.position == "learned":
            x = x + table(cfg.max_len, "position")(position)
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
        mask: Array,
        rope: tuple[Array, Array] | None,
        key: Key | None,
    ) -> Array:
        """Maps [B, S, D] to [B, S, D].

        Args:
            x: [B, S, D] hidden states.
            mask: [B, S, S] bool, which token may see which.
            rope: cosines and sines [B, S, D/H/2], None without rotary positions.
            key: dropout key, None to run without dropout.
        """
        cfg = self.cfg
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        attention_norm, mlp_norm = norm(cfg, "attention_norm"), norm(cfg, "mlp_norm")
        if cfg.norm_at == "pre":
            attended = self.attention(attention_norm(x), mask, rope, keys[0])
            x = x + dropout(attended, cfg.dropout, keys[1])
            return x + dropout(self.mlp(mlp_norm(x)), cfg.dropout, keys[2])
        attended = self.attention(x, mask, rope, keys[0])
        x = attention_norm(x + dropout(attended, cfg.dropout, keys[1]))
        return mlp_norm(x + dropout(self.mlp(x), cfg.dropout, keys[2]))

    def attention(self, x, mask, rope, key):
        """Multi-head attention of [B, S, D] to itself."""
        cfg = self.cfg

        def heads(name):
            y = nn.DenseGeneral(
                (cfg.heads, cfg.head_dim),
                kernel_init=INIT,
                use_bias=cfg.bias,
                dtype=cfg.compute_dtype,
                name=name,
            )(_flat(x))
            return y.reshape(*x.shape[:2], cfg.heads, cfg.head_dim)

        q, k, v = heads("query"), heads("key"), heads("value")
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        y = attend(cfg, q, k, v, mask, key)
        out = nn.DenseGeneral(
            cfg.width,
            axis=(-2, -1),
            kernel_init=INIT,
            use_bias=cfg.bias,
            dtype=cfg.compute_dtype,
            name="out",
        )
        return out(_flat(y)).reshape(x.shape)

    def mlp(self, x):
        """Feed-forward layer, gated or not: [B, S, D] -> [B, S, D]."""
        cfg = self.cfg

        def dense(features, name):
            return nn.Dense(
                features,
                kernel_init=INIT,
                use_bias=cfg.bias,
                dtype=cfg.compute_dtype,
                name=name,
            )

        rows = _flat(x)
        up = dense(cfg.mlp, "up")(rows)
        act = ACTIVATIONS[cfg.act]
        y = act(dense(cfg.mlp, "gate")(rows)) * up if cfg.gated else act(up)
        return dense(cfg.width, "down")(y).reshape(x.shape)


def _flat(x: Array) -> Array:
    """[B, S, ...] as [B*S, ...].

    From three axes XLA's CPU compiler makes transposed copies for the gradient of a
    kernel, which take longer than the product.
    """
    return x.reshape(-1, *x.shape[2:])


def attend(
    cfg: EncoderConfig, q: Array, k: Array, v: Array, mask: Array, key: Key | None
) -> Array:
    """Attention by the implementation that the config names; as `plain_attention`.

    "auto" is chosen where the program is compiled for, not where it is traced. Dropout
    of the weights is something that only the plain implementation has.
    """

    def plain(q, k, v, mask):
        return plain_attention(q, k, v, mask, cfg.dropout, key)

    def fused(q, k, v, mask):
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    if cfg.attention == "plain" or (key is not None and cfg.dropout > 0):
        return plain(q, k, v, mask)
    if cfg.attention == "fused":
        return fused(q, k, v, mask)
    return jax.lax.platform_dependent(q, k, v, mask, cpu=plain, default=fused)


def plain_attention(
    q: Array, k: Array, v: Array, mask: Array, rate: float, key: Key | None
) -> Array:
    """Softmax attention in the form that is fastest on CPU.

    Heads come before positions, keys are laid out transposed, and the sum of the
    softmax divides the [S, D/H] result instead of the [S, S] weights.

    Args:
        q: [B, S, H, D/H] queries; k and v: the same for keys and values.
        k: keys.
        v: values.
        mask: [B, S, S] bool, which token may see which.
        rate: dropout of the weights, if there is a key.
        key: dropout key or None.

    Returns:
        [B, S, H, D/H] in the type of v.
    """
    scale = q.shape[-1] ** -0.5
    scores = jnp.matmul(
        q.transpose(0, 2, 1, 3) * jnp.asarray(scale, q.dtype),
        k.transpose(0, 2, 3, 1),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = dropout(weights, rate, key).astype(v.dtype)
    y = jnp.matmul(weights, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    return (y / total).astype(v.dtype).transpose(0, 2, 1, 3)
