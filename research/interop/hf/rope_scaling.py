"""Rotary extensions as Hugging Face `transformers` writes them in a `config.json`."""

import inspect
from collections.abc import Mapping
from typing import Any

from research.models.positions.rope import ROPE


def from_hugging_face(parameters: Mapping[str, Any], max_positions: int) -> tuple:
    """The extension that `rope_parameters` (formerly `rope_scaling`) describes.

    What `transformers` fills in is made explicit: L0 where it is not given, and the
    scale of YaRN and LongRoPE, from `max_positions`. Base and partial rotation are not
    read, except by "proportional".

    Args:
        parameters: of one kind of layer. A top-level original_max_position_embeddings
            of a `config.json` (Phi-3) overrides theirs, so put it in.
        max_positions: max_position_embeddings of the `config.json`.
    Returns:
        `EncoderConfig.extensions`: () or one (name, ((argument, value), ...)) with all
        arguments.
    Raises:
        ValueError: the rope_type is unknown, or a needed parameter is missing.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return ()
    if kind not in HUGGING_FACE:
        known = ", ".join(["default", *HUGGING_FACE])
        raise ValueError(f"rope_parameters has rope_type {kind!r}; known are {known}")
    name, fields = HUGGING_FACE[kind]
    given = {
        ours: tuple(value) if isinstance(value, list) else value
        for ours, theirs in fields.items()
        if (value := parameters.get(theirs)) is not None
    }
    given.setdefault("original", max_positions)
    if kind in ("yarn", "longrope"):
        given.setdefault("scale", max_positions / given["original"])
    if kind == "longrope" and given.get("short") == given.get("long"):
        given["short"] = ()
    elif kind == "longrope":
        given["choice"] = "length"
    if missing := [fields[x] for x in _needed(name) if x not in given]:
        raise ValueError(
            f"rope_parameters of rope_type {kind} lacks {', '.join(missing)}"
        )
    return ((name, _complete(name, given)),)


def to_hugging_face(extensions: tuple) -> dict[str, Any]:
    """The inverse of `from_hugging_face`, but for base and partial rotation.

    `transformers` takes the L0 of "dynamic" from max_position_embeddings: write it
    there. Elsewhere L0 and scale are always written out.

    Raises:
        ValueError: `transformers` has no such type of rotary positions.
    """
    if not extensions:
        return {"rope_type": "default"}
    kinds = {name: kind for kind, (name, _) in HUGGING_FACE.items()}
    (name, given), *more = extensions
    if more or name not in kinds or dict(given).get("paper"):
        raise ValueError(
            f"transformers has no rope_type for {', '.join(x for x, _ in extensions)}; "
            f"it has one for each of {', '.join(kinds)} (yarn without the paper's ramp)"
        )
    kind = kinds[name]
    arguments = dict(_complete(name, dict(given)))
    if name == "longrope" and arguments["choice"] == "long":
        arguments["short"] = arguments["long"]
    written = {
        theirs: list(value) if isinstance(value, tuple) else value
        for ours, theirs in HUGGING_FACE[kind][1].items()
        if (value := arguments.get(ours)) is not None
    }
    return {"rope_type": kind, **written}


def _arguments(name: str) -> dict[str, Any]:
    """The arguments of a method and their defaults."""
    parameters = inspect.signature(ROPE[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _needed(name: str) -> list[str]:
    empty = inspect.Parameter.empty
    return [x for x, default in _arguments(name).items() if default is empty]


def _complete(name: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Every argument of a method, in the order of its signature."""
    return tuple((x, given.get(x, default)) for x, default in _arguments(name).items())


# rope_type -> our name, and our arguments by its parameters.
_SCALED = {"scale": "factor", "original": "original_max_position_embeddings"}
HUGGING_FACE = {
    "linear": ("linear", {"scale": "factor"}),
    "dynamic": ("dynamic_ntk", {"scale": "factor"}),
    "yarn": (
        "yarn",
        _SCALED
        | {
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "truncate": "truncate",
            "attention": "attention_factor",
            "mscale": "mscale",
            "mscale_all_dim": "mscale_all_dim",
        },
    ),
    "llama3": (
        "llama3",
        _SCALED | {"low": "low_freq_factor", "high": "high_freq_factor"},
    ),
    "longrope": (
        "longrope",
        _SCALED
        | {
            "long": "long_factor",
            "short": "short_factor",
            "attention": "attention_factor",
        },
    ),
    "proportional": (
        "proportional",
        {"scale": "factor", "fraction": "partial_rotary_factor"},
    ),
}
