"""The linear layer of the blocks, with optional low-rank adapters (LoRA).

LoRA is Hu et al. 2021. The adapters' parameters are an argument of the layer; where
they stand in the encoder's tree is said in `lora`.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.dropout import dropout
from research.types import Array, Key, Params

KERNEL_INIT = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """y = x W + b, plus scale (x a) b for the adapter of each row (LoRA, equation 3).

    Attributes:
        features: The shape of one row of y.
        use_bias: Whether there is a bias.
        dtype: The type of the product; parameters are cast to it.
        axes: How many of the last axes of x belong to one row.
    """

    features: tuple[int, ...]
    use_bias: bool
    dtype: jnp.dtype
    axes: int = 1

    @nn.compact
    def __call__(
        self,
        x: Array,
        lora: Params | None = None,
        adapter_ids: Array | None = None,
        key: Key | None = None,
    ) -> Array:
        """Maps rows [N, ...] to [N, *features].

        Args:
            x: The rows.
            lora: The layer's adapters, as `lora_delta` takes them; None for none.
            adapter_ids: [N] int32, the adapter of each row, -1 for none; None for the
                first.
            key: Dropout key of the adapters; None runs without dropout.
        """
        in_shape = x.shape[-self.axes :]
        kernel = self.param("kernel", KERNEL_INIT, (*in_shape, *self.features))
        y = product(x, kernel.astype(self.dtype), self.axes)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features)
            y = y + bias.astype(self.dtype)[None]
        if lora is not None:
            x = x.astype(self.dtype)
            y = y + lora_delta(lora, x, self.axes, adapter_ids, key)
        return y


def lora_params(layer_params: Params) -> Params:
    """The adapters of a block's linear layers: {layer name: its "lora" subtree}."""
    return {name: p["lora"] for name, p in layer_params.items() if "lora" in p}


def lora_delta(
    lora: Params, x: Array, axes: int, adapter_ids: Array | None, key: Key | None
) -> Array:
    """What the adapters add to the output of a linear layer: scale (x a) b.

    The A adapters of rank r lie side by side along one axis of A*r, so that rows of
    different adapters take one product; what other adapters give is multiplied by 0.

    Args:
        lora: a [...in, A*r], b [A*r, ...out], scale [A], and rate [] where training
            drops inputs.
        x: [N, ...in].
        axes: How many axes `in` has.
        adapter_ids: [N] int32, -1 for none; None for the first adapter.
        key: Dropout key; None runs without dropout.

    Returns:
        [N, ...out] in the type of x.
    """
    chex.assert_shape(x, (None, *lora["a"].shape[:-1]))
    scale = lora["scale"].astype(x.dtype)
    rank = lora["a"].shape[-1] // len(scale)
    a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
    # [N|1, A] the scale of each row's adapter, 0 for the other adapters
    if adapter_ids is None:
        a, b, weights = a[..., :rank], b[:rank], scale[:1]
    else:
        numbers = jnp.arange(len(scale), dtype=adapter_ids.dtype)
        is_adapter = adapter_ids[:, None] == numbers[None]
        weights = jnp.where(is_adapter, scale[None], jnp.zeros((), x.dtype))
    if "rate" in lora:
        x = dropout(x, lora["rate"], key)
    weights = jnp.repeat(weights, rank, axis=-1).reshape(-1, a.shape[-1])  # [N|1, A*r]
    return product(product(x, a, axes) * weights, b, 1)


def product(x: Array, kernel: Array, axes: int) -> Array:
    """The last `axes` axes of x [N, ...in] times the first of a kernel [...in, ...]."""
    x = x.astype(kernel.dtype)
    last = tuple(range(x.ndim - axes, x.ndim))
    return jax.lax.dot_general(x, kernel, ((last, tuple(range(axes))), ((), ())))
