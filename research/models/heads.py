"""Heads that predict tokens: BERT's MLM head, and a language model's output layer.

Logits over the vocabulary are hidden states times `output_embeddings`. They are
computed in chunks by `losses.token_prediction`, so that [B, S, V] is never in memory.
"""

import chex
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.layers import ACTIVATIONS, norm
from research.models.linear import KERNEL_INIT
from research.types import Array, Key, Params


def init_mlm_head(key: Key, cfg: EncoderConfig) -> Params:
    """BERT's prediction head: a dense layer, a norm, and the bias of the logits."""
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
    """norm(act(W x + b)), with the first d input channels of W (BERT; Starbucks' SMAE).

    For truncated states this equals the full head applied to states padded with zeros,
    but costs less.

    Args:
        params: The head, from `init_mlm_head`.
        x: [..., d], the first d of the D components of hidden states.
        cfg: The encoder's shape.

    Returns:
        [..., D] states; logits are these times the output embeddings, plus
        `params["bias"]`.
    """
    dense = params["transform"]
    chex.assert_shape(dense["kernel"], (None, cfg.width))
    # [N, d] x [d, D] -> [N, D]
    kernel = dense["kernel"][: x.shape[-1]].astype(x.dtype)
    y = x.reshape(-1, x.shape[-1]) @ kernel + dense["bias"].astype(x.dtype)[None]
    y = norm(cfg, None).apply({"params": params["norm"]}, ACTIVATIONS[cfg.act](y))
    return y.reshape(*x.shape[:-1], cfg.width)


def init_lm_head(key: Key, cfg: EncoderConfig) -> Params:
    """The output layer of a language model that is not tied to the token table.

    It is stored in the encoder's parameters as "lm_head", beside "embed" and "layers".
    Tied models have none.

    Returns:
        {"kernel": [V, D]}.
    """
    return {"kernel": KERNEL_INIT(key, (cfg.vocab_size, cfg.width))}


def output_embeddings(params: Params) -> Array:
    """The output layer's matrix: "lm_head" if there is one, else the token table.

    Args:
        params: The encoder's parameters.

    Returns:
        [V, D]; logits of states x are x @ output_embeddings.T.
    """
    # Untied models have an output layer
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["embed"]["token"]["embedding"]
