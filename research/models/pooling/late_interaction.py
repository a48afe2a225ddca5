"""Late interaction: a projected vector for each token of a text (ColBERT)."""

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling
from research.types import Array, Key, Params


def colbert(*, dim: int = 128) -> LearnedPooling:
    """A vector for each token: its state, projected (Khattab and Zaharia 2020).

    The projection has neither bias nor activation. States of fewer dimensions, of an
    encoder whose width is cut, go through its first rows.

    Args:
        dim: Width of the vectors; 0 for the states themselves.
    """
    if dim < 0:
        raise ValueError(f"pool.dim is {dim}; it is a width, or 0 for no projection")

    # A projection without bias, [D, d], if there is one
    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del params
        return {"kernel": KERNEL_INIT(key, (cfg.width, dim))}

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        del cfg
        x = tokens.astype(jnp.float32)
        if dim:
            kernel = params["pooling"]["kernel"][: x.shape[-1]]
            x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        # [B, S, E], zeros for padding and tokens that are not scored
        return jnp.where(mask.any(1)[:, :, None], x, 0.0)

    return LearnedPooling(
        init if dim else None,
        pool,
        width=(lambda cfg: dim) if dim else None,
        kind="multi_vector",
    )
