"""The linear layer of the blocks, with optional low-rank adapters (LoRA).

LoRA is from Hu et al. 2021. The adapters' parameters are an argument of the layer;
`lora` describes where the encoder's parameters hold them.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.dropout import dropout
from research.types import Array, Key, Params

KERNEL_INIT = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """y = x W + bias, plus scale (x a) b for the adapter of each row (LoRA, eq. 3).

    Attributes:
        features: Shape of one row of y.
        use_bias: Whether there is a bias.
        dtype: Data type of the product; parameters are cast to it.
        axes: Number of trailing axes of x that are contracted with the kernel.
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
            x: [N, ...] rows.
            lora: Adapters of the layer, as in `lora_delta`; None for none.
            adapter_ids: [N] int32 adapter of each row, -1 for none; None uses the first
                adapter for all rows.
            key: Dropout key of the adapters; None runs without dropout.
        """
        in_shape = x.shape[-self.axes :]
        kernel = self.param("kernel", KERNEL_INIT, (*in_shape, *self.features))
        # [N, *features]
        y = product(x, kernel.astype(self.dtype), self.axes)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features)
            y = y + bias.astype(self.dtype)[None]
        if lora is not None:
            x = x.astype(self.dtype)
            y = y + lora_delta(lora, x, self.axes, adapter_ids, key)
        return y


def lora_params(layer_params: Params) -> Params:
    """The adapters of a block's linear layers: {layer name: "lora" subtree}."""
    return {name: p["lora"] for name, p in layer_params.items() if "lora" in p}


def lora_delta(
    lora: Params, x: Array, axes: int, adapter_ids: Array | None, key: Key | None
) -> Array:
    """The term that adapters add to the output of a linear layer: scale (x a) b.

    The A adapters of rank r are concatenated along one axis of size A*r, so that one
    product serves rows with different adapters; the other adapters' activations are
    multiplied by 0.

    Args:
        lora: {"a": [...in, A*r], "b": [A*r, ...out], "scale": [A]}, and "rate" [] for
            dropout of the inputs.
        x: [N, ...in] inputs.
        axes: Number of axes of `in`.
        adapter_ids: [N] int32 adapter of each row, -1 for none; None for the first.
        key: Dropout key; None runs without dropout.

    Returns:
        [N, ...out] in the type of x.
    """
    chex.assert_shape(x, (None, *lora["a"].shape[:-1]))
    # a and b of all adapters, in the type of x
    scale = lora["scale"].astype(x.dtype)
    rank = lora["a"].shape[-1] // len(scale)
    a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
    # [N, A] scale of each row's adapter, 0 for the others; [1] if all use the first
    if adapter_ids is None:
        a, b, weights = a[..., :rank], b[:rank], scale[:1]
    else:
        numbers = jnp.arange(len(scale), dtype=adapter_ids.dtype)
        is_adapter = adapter_ids[:, None] == numbers[None]
        weights = jnp.where(is_adapter, scale[None], jnp.zeros((), x.dtype))
    if "rate" in lora:
        x = dropout(x, lora["rate"], key)
    weights = jnp.repeat(weights, rank, axis=-1).reshape(-1, a.shape[-1])  # [N|1, A*r]
    # [N, A*r] -> [N, ...out]
    return product(product(x, a, axes) * weights, b, 1)


def product(x: Array, kernel: Array, axes: int) -> Array:
    """Contracts the last `axes` axes of x [N, ...in] with a kernel [...in, ...out]."""
    x = x.astype(kernel.dtype)
    last = tuple(range(x.ndim - axes, x.ndim))
    return jax.lax.dot_general(x, kernel, ((last, tuple(range(axes))), ((), ())))
