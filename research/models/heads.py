"""The head that predicts tokens from states, before the tied output layer."""

import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.layers import ACTIVATIONS, norm
from research.models.linear import KERNEL_INIT
from research.types import Array, Key, Params


def init_mlm_head(key: Key, cfg: EncoderConfig) -> Params:
    """The head that predicts tokens: a dense layer, a norm, and the output's bias."""
    x = jnp.zeros((1, 1, cfg.width), cfg.compute_dtype)
    return {
        "transform": {
            "kernel": KERNEL_INIT(key, (cfg.width, cfg.width)),
            "bias": jnp.zeros(cfg.width),
        },
        "norm": norm(cfg, None).init(key, x)["params"],
        "bias": jnp.zeros(cfg.vocab_size),
    }


def apply_mlm_head(params: Params, x: Array, cfg: EncoderConfig) -> Array:
    """norm(act(W x + b)), with the first d input columns of W (BERT; Starbucks' SMAE).

    Of a prefix of the states it is what the whole head makes of them padded with zeros,
    except for its cost.

    Args:
        params: as `init_head` makes them.
        x: [..., d] the first d of the D components of states.
        cfg: the encoder's shape.

    Returns:
        [..., D]; times the token table, plus `params["bias"]`, the logits.
    """
    dense = params["transform"]
    kernel = dense["kernel"][: x.shape[-1]].astype(x.dtype)
    y = x.reshape(-1, x.shape[-1]) @ kernel + dense["bias"].astype(x.dtype)[None]
    y = norm(cfg, None).apply({"params": params["norm"]}, ACTIVATIONS[cfg.act](y))
    return y.reshape(*x.shape[:-1], cfg.width)
