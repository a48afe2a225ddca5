"""The table of poolings, and the parameters of learned poolings.

A pooling is written as a call, "mean" or "latent_attention(latents=64, heads=4)", in
model.json and on the command line. The encoder's parameters hold those of its pooling
as "pooling".

To add a pooling `name(tokens, mask)`, write it in a file of this folder and add it to
BASIC_POOLINGS.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from research.config_sections import build_call, parse_call
from research.models.config import EncoderConfig
from research.models.pooling import (
    attention,
    basic,
    late_interaction,
    lexical,
    m3,
    router,
    splade,
    vector_heads,
)
from research.models.pooling.basic import LearnedPooling
from research.types import Array, Key, Params, Pool

# Functions of hidden states and mask, without options.
BASIC_POOLINGS: dict[str, Pool] = {
    "mean": basic.mean_pool,
    "cls": basic.cls_pool,
    "last": basic.last_token_pool,
    "max": basic.max_pool,
    "weighted_mean": basic.weighted_mean_pool,
}
# Functions of options that return a LearnedPooling.
LEARNED_POOLINGS: dict[str, Callable[..., LearnedPooling]] = {
    "latent_attention": attention.latent_attention,
    "layer_attention": attention.layer_attention,
    "lexicon": lexical.lexicon,
    "dupmae": lexical.dupmae,
    "colbert": late_interaction.colbert,
    "m3": m3.m3,
    "splade": splade.splade,
    "splade_doc": splade.splade_doc,
    "slim": splade.slim,
    "moee": router.moee,
    "csr": vector_heads.csr,
    "bebr": vector_heads.bebr,
}
# All poolings that the config section `pool` and the flag --pool accept.
POOLINGS = {**BASIC_POOLINGS, **LEARNED_POOLINGS}


def parse_pooling(text: str) -> Pool | LearnedPooling:
    """Parses a pooling such as "mean" or "latent_attention(heads=4)".

    Raises:
        ValueError: The text is not a call, there is no such pooling, or it has no such
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
    """Width of the pooled vectors."""
    pool = parse_pooling(text)
    if isinstance(pool, LearnedPooling) and pool.width is not None:
        return pool.width(cfg)
    return cfg.width


def pooled_kind(text: str) -> str:
    """The kind of embeddings, as `LearnedPooling.kind` has it."""
    pool = parse_pooling(text)
    return pool.kind if isinstance(pool, LearnedPooling) else "dense"


def has_query_pooling(pool: Pool | LearnedPooling) -> bool:
    """Whether queries have vectors of their own, without the encoder."""
    return isinstance(pool, LearnedPooling) and pool.pool_query is not None


def add_pooling_params(
    key: Key, params: Params, cfg: EncoderConfig, pool: Pool | LearnedPooling
) -> Params:
    """Adds the parameters of a pooling to the encoder's; removes those of others.

    Existing parameters of this pooling are kept. The MLM "head" of a pre-training run
    and the output layer "lm_head" of a language model are used by a new pooling that
    reuses them, and removed.

    Args:
        key: PRNG key for new parameters.
        params: The encoder's parameters.
        cfg: The encoder's shape.
        pool: The pooling.

    Raises:
        ValueError: The parameters belong to another pooling, or have other shapes.
    """
    # The encoder without pooling and heads
    heads = ("head", "lm_head")
    encoder = {k: v for k, v in params.items() if k not in ("pooling", *heads)}
    if not isinstance(pool, LearnedPooling) or pool.init is None:
        return encoder
    # New parameters
    if "pooling" not in params:
        start = encoder | {name: params[name] for name in heads if name in params}
        return {**encoder, "pooling": pool.init(key, cfg, start)}
    # Parameters of the model that the run starts from, whose shapes must fit
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
    """Binds a pooling to the encoder's parameters: a function of states and mask.

    Args:
        pool: The pooling.
        params: The encoder's parameters.
        cfg: The encoder's shape.

    Returns:
        pool: (states, mask) -> vectors.
        pool_layer: applied first to each layer; None uses the last layer only.

    Raises:
        ValueError: The encoder lacks the pooling's parameters, or has no routers.
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
