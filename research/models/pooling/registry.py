"""All poolings by name, and the parameters of those that learn.

A pooling is written as a call, "mean" or "latent_attention(latents=64, heads=4)", in
model.json and on the command line. Its parameters are "pooling" of the encoder's.

To add a pooling `name(tokens, mask)`, write it in a file of this folder and name it in
BASIC_POOLINGS.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from research.config_sections import build_call, parse_call
from research.models.config import EncoderConfig
from research.models.pooling import attention, basic, lexical, router
from research.models.pooling.basic import LearnedPooling
from research.types import Array, Key, Params, Pool

# Functions of tokens and mask, which have no options.
BASIC_POOLINGS: dict[str, Pool] = {
    "mean": basic.mean_pool,
    "cls": basic.cls_pool,
    "last": basic.last_token_pool,
    "max": basic.max_pool,
    "weighted_mean": basic.weighted_mean_pool,
}
# Functions of options, which return a LearnedPooling.
LEARNED_POOLINGS: dict[str, Callable[..., LearnedPooling]] = {
    "latent_attention": attention.latent_attention,
    "layer_attention": attention.layer_attention,
    "lexicon": lexical.lexicon,
    "dupmae": lexical.dupmae,
    "moee": router.moee,
}
# All that a config's section `pool` and the flag --pool can name.
POOLINGS = {**BASIC_POOLINGS, **LEARNED_POOLINGS}


def parse_pooling(text: str) -> Pool | LearnedPooling:
    """Reads a pooling such as "mean" or "latent_attention(heads=4)".

    Raises:
        ValueError: The text is no call, there is no such pooling, or it has no such
            argument.
    """
    call = parse_call(text)
    if call.name not in POOLINGS:
        raise ValueError(f"unknown pooling {call.name!r}; known: {', '.join(POOLINGS)}")
    if call.name in LEARNED_POOLINGS:
        return build_call(LEARNED_POOLINGS, call)
    if call.args or call.kwargs:
        raise ValueError(f"the pooling {text!r} has arguments; {call.name} takes none")
    return BASIC_POOLINGS[call.name]


def pooled_width(text: str, cfg: EncoderConfig) -> int:
    """Width of the pooled vector."""
    pool = parse_pooling(text)
    if isinstance(pool, LearnedPooling) and pool.width is not None:
        return pool.width(cfg)
    return cfg.width


def add_pooling_params(
    key: Key, params: Params, cfg: EncoderConfig, pool: Pool | LearnedPooling
) -> Params:
    """The encoder's parameters with those of its pooling, and of no other.

    Parameters that are there already are kept. The "head" of a pre-training becomes
    part of a new pooling that reuses it, and is removed otherwise.

    Args:
        key: Random key of new parameters.
        params: The encoder's parameters.
        cfg: The encoder's shape.
        pool: The pooling.

    Raises:
        ValueError: The parameters are those of another pooling, or have other shapes.
    """
    encoder = {k: v for k, v in params.items() if k not in ("pooling", "head")}
    if not isinstance(pool, LearnedPooling) or pool.init is None:
        return encoder
    # New parameters.
    if "pooling" not in params:
        start = {**encoder, "head": params["head"]} if "head" in params else encoder
        return {**encoder, "pooling": pool.init(key, cfg, start)}
    # Parameters of the model that the run starts from, which must fit.
    new = jax.eval_shape(partial(pool.init, cfg=cfg), key, params=encoder)
    expected = jax.tree.map(jnp.shape, new)
    shapes = jax.tree.map(jnp.shape, params["pooling"])
    if shapes != expected:
        raise ValueError(
            "the model that the run starts from has another pooling than the config, "
            f"which needs the parameters {_format_shapes(expected)}, not "
            f"{_format_shapes(shapes)}"
        )
    return {**encoder, "pooling": params["pooling"]}


def bind_pooling(
    pool: Pool | LearnedPooling, params: Params, cfg: EncoderConfig
) -> tuple[Pool, Callable[..., Array] | None]:
    """The pooling of an encoder as a function of states and mask alone.

    Args:
        pool: The pooling.
        params: The encoder's parameters.
        cfg: The encoder's shape.

    Returns:
        pool: (states, mask) -> vectors.
        pool_layer: applied to each layer first; None reads the last layer only.

    Raises:
        ValueError: The encoder lacks the pooling's parameters, or routers.
    """
    if not isinstance(pool, LearnedPooling):
        return pool, None
    if pool.reads_router and not cfg.num_experts:
        raise ValueError(
            "this pooling reads the routers of a mixture of experts, and the model has "
            "none"
        )
    if pool.init is not None and "pooling" not in params:
        raise ValueError(
            "this pooling has parameters, and the model was not trained with it"
        )
    return partial(pool.pool, params, cfg), pool.pool_layer


def _format_shapes(shapes: Params) -> str:
    """Paths and shapes of parameters, for an error message."""
    leaves = jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(shape)}"
        for path, shape in leaves
    )
