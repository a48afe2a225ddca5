"""The linear layer of the blocks, with the low-rank adapters that its tree may hold."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.types import Array, Key, Params

KERNEL_INIT = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """y = x W + b; with {"lora": {"a", "b", "scale"}} beside W, + scale (x a) b.

    LoRA (Hu et al. 2021, equation 3). The adapters lie side by side along the rank.

    Attributes:
        features: the shape of a row of y.
        use_bias: whether there is a b.
        dtype: of the product; parameters are cast to it.
        axes: how many axes of x, the last ones, a row of x has.
    """

    features: tuple[int, ...]
    use_bias: bool
    dtype: jnp.dtype
    axes: int = 1

    @nn.compact
    def __call__(
        self, x: Array, adapter: Array | None = None, key: Key | None = None
    ) -> Array:
        """Maps [N, ...] to [N, *features].

        Args:
            x: the rows.
            adapter: [N] int32, which adapter each goes through, -1 for none; None for
                the first. Without adapters it means nothing.
            key: of the adapters' dropout; None runs without.
        """
        rows = x.shape[-self.axes :]
        kernel = self.param("kernel", KERNEL_INIT, (*rows, *self.features))
        y = product(x, kernel.astype(self.dtype), self.axes)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features)
            y = y + bias.astype(self.dtype)[None]
        if self.has_variable("params", "lora"):
            lora = self.get_variable("params", "lora")
            y = y + correction(lora, x.astype(self.dtype), self.axes, adapter, key)
        return y


def correction(
    lora: Params, x: Array, axes: int, adapter: Array | None, key: Key | None
) -> Array:
    """What the adapters add to the rows of a linear layer.

    Args:
        lora: a [...in, A*r], b [A*r, ...out], scale [A], perhaps rate [].
        x: [N, ...in].
        axes: how many axes `in` has.
        adapter, key: as `Linear` takes them.

    Returns:
        [N, ...out] in the type of x.
    """
    scale = lora["scale"].astype(x.dtype)
    rank = lora["a"].shape[-1] // len(scale)
    a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
    if adapter is None:
        a, b, weight = a[..., :rank], b[:rank], scale[:1]
    else:
        mine = adapter[:, None] == jnp.arange(len(scale), dtype=adapter.dtype)[None]
        weight = jnp.where(mine, scale[None], jnp.zeros((), x.dtype))
    if "rate" in lora and key is not None:
        keep = 1 - lora["rate"].astype(jnp.float32)
        drop = ~jax.random.bernoulli(key, keep, x.shape)
        x = jnp.where(drop, jnp.zeros((), x.dtype), x / keep.astype(x.dtype))
    weight = jnp.repeat(weight, rank, axis=-1).reshape(-1, a.shape[-1])
    return product(product(x, a, axes) * weight, b, 1)


def product(x: Array, kernel: Array, axes: int) -> Array:
    """The last `axes` axes of x [N, ...in] times the first of a kernel [...in, ...]."""
    x = x.astype(kernel.dtype)
    last = tuple(range(x.ndim - axes, x.ndim))
    return jax.lax.dot_general(x, kernel, ((last, tuple(range(axes))), ((), ())))
