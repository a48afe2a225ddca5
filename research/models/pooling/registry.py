"""Poolings that are more than a function of the last layer's states.

Their parameters stand in the encoder's tree under "readout".

A pooling is written as one text, "mean" or "latent_attention:latents=64,heads=4", in
model.json and wherever texts are embedded.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.pooling import attention, basic, lexical, router
from research.models.pooling.basic import LearnedPooling
from research.types import Array, Key, Params, Pool


def parse_pooling(text: str) -> Pool | LearnedPooling:
    """The pooling of "name" or "name:argument=number,argument=word".

    Raises:
        ValueError: the text has another form, there is no such pooling, or it has no
            such argument.
    """
    name, _, rest = text.partition(":")
    if name not in POOLINGS:
        raise ValueError(f"unknown pooling {name!r}; known: {', '.join(POOLINGS)}")
    arguments = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        arguments[key] = _value(value)
    known = dict(inspect.signature(POOLINGS[name]).parameters)
    wanted = [key for key in known if known[key].kind is known[key].KEYWORD_ONLY]
    if unknown := sorted(set(arguments) - set(wanted)):
        raise ValueError(
            f"pooling {text!r}: {name} has no argument {', '.join(unknown)}; "
            f"it has {', '.join(wanted) or 'none'}"
        )
    if name in BASIC_POOLINGS:
        return BASIC_POOLINGS[name]
    return LEARNED_POOLINGS[name](**arguments)


def _value(text: str) -> int | float | str:
    """A number where the text is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def format_pooling(section: Mapping[str, Any]) -> str:
    """The text of a config's section of a pooling; the inverse of `pooling`."""
    arguments = dict(section.items())
    name = arguments.pop("name")
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name}:{listed}" if listed else name


def pooled_width(text: str, cfg: EncoderConfig) -> int:
    """How many numbers the pooled vector has."""
    found = parse_pooling(text)
    own = found.width if isinstance(found, LearnedPooling) else None
    return cfg.width if own is None else own(cfg)


def add_pooling_params(
    key: Key, params: Params, cfg: EncoderConfig, pool: Pool | LearnedPooling
) -> Params:
    """The encoder's parameters with those of its pooling, and no other's.

    A readout that is there already is kept; a "head" goes into a new one, or away.

    Raises:
        ValueError: it is of another pooling, or of other sizes.
    """
    given = {name: part for name, part in params.items() if name != "readout"}
    rest = {name: part for name, part in given.items() if name != "head"}
    if not isinstance(pool, LearnedPooling) or pool.init is None:
        return rest
    if "readout" not in params:
        return {**rest, "readout": pool.init(key, cfg, given)}
    shapes = [
        jax.tree.map(jnp.shape, part)
        for part in (
            jax.eval_shape(partial(pool.init, cfg=cfg), key, params=rest),
            params["readout"],
        )
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the model that the run starts from pools otherwise than the config, whose "
            f"pooling has the parameters {_listed(shapes[0])}, not "
            f"{_listed(shapes[1])}"
        )
    return {**rest, "readout": params["readout"]}


def _listed(shapes: Params) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(shape)}"
        for path, shape in leaves
    )


def bind_pooling(
    pool: Pool | LearnedPooling, params: Params, cfg: EncoderConfig
) -> tuple[Pool, Callable[..., Array] | None]:
    """The pooling of an encoder, and what it wants of every layer (or None).

    Args:
        pool: of `POOLINGS`.
        params: the encoder's.
        cfg: its shape.

    Raises:
        ValueError: the encoder lacks the pooling's parameters, or routers.
    """
    if not isinstance(pool, LearnedPooling):
        return pool, None
    if pool.reads_router and not cfg.num_experts:
        raise ValueError(
            "this pooling reads the routers of a mixture of experts, and the model has "
            "none"
        )
    if pool.init is not None and "readout" not in params:
        raise ValueError(
            "this pooling has parameters, and the model was not trained with it"
        )
    return partial(pool.pool, params, cfg), pool.pool_layer


# Functions of tokens and mask, as they are used.
BASIC_POOLINGS = {
    "mean": basic.mean_pool,
    "cls": basic.cls_pool,
    "last": basic.last_token_pool,
    "max": basic.max_pool,
    "weighted_mean": basic.weighted_mean_pool,
}
# Functions that take a config section's options and return a LearnedPooling.
LEARNED_POOLINGS = {
    "latent_attention": attention.latent_attention,
    "layer_attention": attention.layer_attention,
    "lexicon": lexical.lexicon,
    "dupmae": lexical.dupmae,
    "moee": router.moee,
}
# Everything that a config's section `pool` can name.
POOLINGS = {**BASIC_POOLINGS, **LEARNED_POOLINGS}
