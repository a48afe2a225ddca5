"""A longer context for a model as it is: methods by name, for every kind of position.

`extended` checks that methods fit a model and makes the longer one of it. Rotary
methods and temperatures only enter `EncoderConfig.extensions`; the methods of learned
positions make another table.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.clex import init_clex
from research.models.positions.learned import SPREAD, TABLES
from research.models.positions.query_scale import TEMPERATURES, query_scale
from research.models.positions.relative_rope import REACH, RELATIONS, relation
from research.models.positions.rope import ROPE, extended_rope
from research.models.positions.segment_positions import segment_positions
from research.types import Params

Methods = Mapping[str, Mapping[str, Any]]


def extend_context(
    params: Params, cfg: EncoderConfig, methods: Methods
) -> tuple[Params, EncoderConfig]:
    """The encoder with a longer context, its weights untouched.

    Args:
        params: the encoder's.
        cfg: its shape.
        methods: name in EXTENSIONS -> arguments. `original` (L0, the longest text of
            the training in tokens) is `cfg.max_len` unless given.

    Returns:
        (params, config). With a method of position tables the table is the longer one;
        texts that fit the old table are embedded as before.
    Raises:
        ValueError: as `extended_config`.
    """
    new = extend_config(cfg, methods)
    for name, arguments in methods.items():
        if name in TABLES:
            params = _with_table(params, cfg, name, arguments)
        if name == "clex" and "clex" not in params:
            full = dict(dict(new.position_methods)["clex"])
            params = {**params, "clex": init_clex(jax.random.key(0), new, **full)}
    return params, new


def extend_config(cfg: EncoderConfig, methods: Methods) -> EncoderConfig:
    """The shape of the encoder that `extended` makes.

    Its `max_len` is what the farthest of the methods reaches, at least `cfg.max_len`.

    Raises:
        ValueError: a method is unknown or does not fit the model's positions, its
            arguments do not fit it, or `reach` asks for more than the others give.
    """
    full = {name: _arguments(cfg, name, methods[name]) for name in methods}
    tables = [name for name in full if name in TABLES]
    if len(tables) > 1 or (tables and cfg.position_stride > 1):
        raise ValueError(
            "a position table can be extended once; "
            + (f"{' and '.join(tables)} are two" if tables[1:] else "this one has been")
        )
    kept = tuple(
        (name, tuple(arguments.items()))
        for name, arguments in full.items()
        if name not in TABLES and name != "reach"
    )
    new = dataclasses.replace(cfg, position_methods=cfg.position_methods + kept)
    _try(new, {name: full[name] for name in tables})
    reaches = [_reach(cfg, name, arguments) for name, arguments in full.items()]
    spread = [full[name]["scale"] for name in tables if name in SPREAD]
    new = dataclasses.replace(
        new,
        max_len=max(cfg.max_len, *reaches, 0),
        position_stride=spread[0] if spread else cfg.position_stride,
    )
    if "reach" not in full:
        return new
    return _reaching(cfg, new, list(full), extrapolate(**full["reach"]))


def _reaching(
    cfg: EncoderConfig, new: EncoderConfig, methods: list[str], length: int
) -> EncoderConfig:
    """`new`, the extension of `cfg` by methods, for texts of `length` tokens."""
    limited = [name for name in methods if name not in UNLIMITED]
    if length > new.max_len and (limited or cfg.position == "learned"):
        who = " and ".join(limited) or "this model's position table"
        raise ValueError(
            f"{who} reaches texts of {new.max_len} tokens, not of {length}; "
            f"{suggest_method(cfg, length, limited[0] if limited else '')} does"
        )
    return dataclasses.replace(new, max_len=max(new.max_len, length))


def suggest_method(cfg: EncoderConfig, length: int, method: str = "") -> str:
    """What `parse` reads as a method that takes this model to texts of `length`.

    Args:
        cfg: the model's shape.
        length: in tokens.
        method: the one to choose, if a scale is what it takes.
    """
    usual = {"learned": "interpolated", "rope": "yarn"}
    if method not in TABLES and "scale" not in _keywords(method):
        method = usual.get(cfg.position, "")
    if not method:
        return f"reach:length={length}"
    return f"{method}:scale={-(-length // cfg.max_len)}"


def extrapolate(*, length: int) -> int:
    """Texts up to `length` tokens without any change of the model.

    For models whose positions have no end: ALiBi, relative biases, none at all; rotary
    positions beyond the training are turns that the model has not seen.

    Raises:
        ValueError: length is not at least 1.
    """
    if length < 1:
        raise ValueError(f"reach's length is {length}; it must be at least 1")
    return length


def _arguments(
    cfg: EncoderConfig, name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a method that fits the model's positions, with `original`."""
    if name not in POSITION_METHODS:
        raise ValueError(
            f"unknown method {name!r} to extend the context; known: "
            f"{', '.join(sorted(POSITION_METHODS))}"
        )
    fitting = [
        other for other in POSITION_METHODS if NEEDS.get(other) in (None, cfg.position)
    ]
    if name not in fitting:
        raise ValueError(
            f"{name} is for models whose positions are {NEEDS[name]!r}; those of this "
            f"one are {cfg.position!r}, which {', '.join(fitting)} fit"
        )
    if name in dict(cfg.position_methods):
        raise ValueError(f"{name} extends this model already")
    known = _keywords(name)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; it has {', '.join(known)}"
        )
    given = {key: value for key, value in given.items() if value is not None}
    if "original" in known:
        given.setdefault("original", cfg.max_len)
    for key, parameter in known.items():
        if key not in given and parameter.default is parameter.empty:
            raise ValueError(f"{name} needs a value for {key}")
        if key in given and not _fits(given[key], parameter.annotation):
            raise ValueError(
                f"{name}'s {key} is {given[key]!r}; it takes {_kind(parameter)}"
            )
    # All of them, in order: what a config.json of transformers is read as.
    return {key: given.get(key, parameter.default) for key, parameter in known.items()}


def _keywords(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a method; none for an unknown one."""
    method = POSITION_METHODS.get(name, lambda: None)
    every = inspect.signature(method).parameters.values()
    return {p.name: p for p in every if p.kind is p.KEYWORD_ONLY}


def _kind(parameter: inspect.Parameter) -> str:
    """What an argument takes, in words."""
    words = {int: "a whole number", float: "a number"}
    return words.get(parameter.annotation, str(parameter.annotation))


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is a number where one is asked for, or a tuple."""
    if annotation in (int, float):
        whole = isinstance(value, int) or annotation is float
        return isinstance(value, int | float) and whole and not isinstance(value, bool)
    return annotation not in (bool, str) or isinstance(value, annotation)


def _reach(cfg: EncoderConfig, name: str, arguments: Mapping[str, Any]) -> int:
    """The longest text of a method, in tokens; 0 if it does not say."""
    original = arguments.get("original", cfg.max_len)
    if name in REACH:
        return REACH[name](cfg, arguments) or 0
    if name == "rebase":  # the scale at which ntk_aware makes the same base
        return int(original * arguments["factor"] ** (1 - 2 / cfg.rotated))
    if name == "clex":
        return original * arguments["max_factor"]
    if name in ROPE or name in TABLES:
        return int(original * arguments.get("scale", 1))
    return 0


def _with_table(
    params: Params, cfg: EncoderConfig, name: str, arguments: Mapping[str, Any]
) -> Params:
    """The parameters with a longer position table."""
    embed = params["embed"]
    table = jnp.asarray(embed["position"]["embedding"])
    front, rows = table[: cfg.position_offset], table[cfg.position_offset :]
    longer = jnp.concatenate([front, TABLES[name](rows, **arguments)])
    return {**params, "embed": {**embed, "position": {"embedding": longer}}}


def _try(cfg: EncoderConfig, tables: Methods) -> None:
    """Calls every method once on the host, for its complaints."""
    if cfg.position == "rope":
        extended_rope(cfg, cfg.max_len)
        relation(cfg)
    query_scale(cfg, segment_positions(jnp.ones((1, 1), jnp.int32)))
    for name, arguments in tables.items():
        TABLES[name](jnp.zeros((1, 1)), **arguments)


POSITION_METHODS: Mapping[str, Callable[..., Any]] = {
    **ROPE,
    **RELATIONS,
    **TEMPERATURES,
    **TABLES,
    "reach": extrapolate,
}
# The positions that a method is for; the others fit any.
NEEDS = {
    **dict.fromkeys((*ROPE, *RELATIONS), "rope"),
    **dict.fromkeys(TABLES, "learned"),
}
# The methods without a longest text of their own.
UNLIMITED = (
    *("reach", "dynamic_ntk", "e2", "truncated_basis", "power_basis", "proportional"),
    *("lm_infinite", *TEMPERATURES),
)
