"""The table of position methods, and `extend_context`, which applies them to a model.

`extend_context` checks that the methods fit the model and returns the model for longer
texts. Most methods are only added to `EncoderConfig.position_methods`; methods for
learned positions extend the table in the parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from research.config_sections import build_call, format_call, parse_calls
from research.models.config import EncoderConfig
from research.models.positions import (
    clex,
    learned,
    query_scale,
    relative_rope,
    rope_scaling,
    yarn,
)
from research.models.positions.base import Extrapolate, PositionMethod
from research.models.positions.learned import TableMethod, extend_position_table
from research.types import Params


def extend_context(
    params: Params, cfg: EncoderConfig, methods: str | Sequence[PositionMethod]
) -> tuple[Params, EncoderConfig]:
    """Extends the context of an encoder, without training.

    Args:
        params: The encoder's parameters.
        cfg: The encoder's shape.
        methods: Position methods, or their call text: "yarn(scale=8) | log_length()".

    Returns:
        (params, config). With a table method, the position table is longer; texts that
        fit the original table are embedded as before.

    Raises:
        ValueError: As `extend_config`.
    """
    methods = read_methods(methods)
    longer = extend_config(cfg, methods)
    for method in methods:
        if isinstance(method, TableMethod):
            params = extend_position_table(params, cfg, method)
        elif method.name not in params:
            # Initial parameters of a method that has some (CLEX)
            learned_params = method.init(jax.random.key(0), longer)
            if learned_params:
                params = {**params, method.name: learned_params}
    return params, longer


def extend_config(
    cfg: EncoderConfig, methods: str | Sequence[PositionMethod]
) -> EncoderConfig:
    """The config of the encoder that `extend_context` returns.

    Its `max_len` is the largest `max_context` of the methods, at least `cfg.max_len`.

    Raises:
        ValueError: A method is unknown, has wrong arguments, does not fit the model's
            positions or another method, or `extrapolate` exceeds the limit of another.
    """
    methods = [method.resolve(cfg) for method in read_methods(methods)]
    _check_methods(cfg, methods)
    # Table methods change the parameters; only the others are stored in the config
    tables = [m for m in methods if isinstance(m, TableMethod)]
    lasting = [m for m in methods if not isinstance(m, TableMethod | Extrapolate)]
    longer = dataclasses.replace(
        cfg,
        position_methods=(*cfg.position_methods, *lasting),
        position_stride=tables[0].position_stride if tables else cfg.position_stride,
        group_per_text=any(getattr(table, "per_text", False) for table in tables)
        or cfg.group_per_text,
    )
    # The longest text
    limits = [method.max_context(cfg) for method in [*tables, *lasting]]
    longer = dataclasses.replace(longer, max_len=max(cfg.max_len, *limits, 0))
    for method in methods:
        if isinstance(method, Extrapolate):
            longer = _extrapolate(cfg, longer, [*tables, *lasting], method.length)
    return longer


def read_methods(
    methods: str | Sequence[PositionMethod],
) -> tuple[PositionMethod, ...]:
    """Parses position methods from call text: "yarn(scale=8) | log_length()".

    Raises:
        ValueError: The text is not a call, or names no method in POSITION_METHODS.
    """
    if isinstance(methods, str):
        calls = parse_calls(methods) if methods else []
        methods = [build_call(POSITION_METHODS, call) for call in calls]
    return tuple(methods)


def format_methods(methods: Sequence[PositionMethod]) -> str:
    """Writes methods as call text for `read_methods`, without default arguments."""
    calls = []
    for method in methods:
        arguments = {
            field.name: getattr(method, field.name)
            for field in dataclasses.fields(method)
            if getattr(method, field.name) != field.default
        }
        calls.append(format_call({"name": method.name, **arguments}))
    return " | ".join(calls)


def config_fields(cfg: EncoderConfig) -> dict[str, Any]:
    """The fields of a config for JSON, with position methods as call text."""
    fields = dataclasses.asdict(dataclasses.replace(cfg, position_methods=()))
    return {**fields, "position_methods": format_methods(cfg.position_methods)}


def encoder_config(fields: Mapping[str, Any]) -> EncoderConfig:
    """Makes a config from `config_fields`."""
    methods = read_methods(fields["position_methods"])
    return EncoderConfig(**{**fields, "position_methods": methods})


def suggest_method(cfg: EncoderConfig, length: int, name: str = "") -> str:
    """Call text of a method that extends this model to texts of `length` tokens.

    Args:
        cfg: The model's shape.
        length: Length of the texts in tokens.
        name: Name of the preferred method, which is suggested if it has a scale.
    """
    arguments = {
        f.name for f in dataclasses.fields(POSITION_METHODS.get(name, Extrapolate))
    }
    # Defaults by the kind of positions
    if "scale" not in arguments:
        name = {"learned": "interpolated", "rope": "yarn"}.get(cfg.position, "")
    if not name:
        return f"extrapolate(length={length})"
    return f"{name}(scale={-(-length // cfg.max_len)})"


def _check_methods(cfg: EncoderConfig, methods: Sequence[PositionMethod]) -> None:
    """Raises ValueError if a method does not fit the encoder or another method."""
    earlier = list(cfg.position_methods)
    for method in methods:
        # The kind of positions: learned, RoPE or any
        if method.requires not in ("", cfg.position):
            fitting = [
                name
                for name, cls in POSITION_METHODS.items()
                if cls.requires in ("", cfg.position)
            ]
            raise ValueError(
                f"{method.name} is for models whose positions are {method.requires!r}; "
                f"those of this one are {cfg.position!r}, which {', '.join(fitting)} "
                "fit"
            )
        if method.name in [m.name for m in earlier]:
            raise ValueError(f"{method.name} extends this model already")
        # Other methods of the model
        for first in earlier:
            if method.conflicts_with(first) or first.conflicts_with(method):
                raise ValueError(
                    f"{first.name} and {method.name} cannot be combined; choose one"
                )
        method.check(cfg)
        earlier.append(method)


def _extrapolate(
    cfg: EncoderConfig,
    longer: EncoderConfig,
    methods: Sequence[PositionMethod],
    length: int,
) -> EncoderConfig:
    """Raises the `max_len` of `longer`, which extends `cfg` by methods, to `length`.

    Raises:
        ValueError: The position table or a bounded method does not allow this length.
    """
    # A position table and bounded methods limit the length
    bounded = [method.name for method in methods if method.bounded]
    if length > longer.max_len and (bounded or cfg.position == "learned"):
        subject = " and ".join(bounded) or "this model's position table"
        suggested = suggest_method(cfg, length, bounded[0] if bounded else "")
        raise ValueError(
            f"{subject} allows texts of {longer.max_len} tokens, not of {length}; "
            f"{suggested} does"
        )
    return dataclasses.replace(longer, max_len=max(longer.max_len, length))


POSITION_METHODS: Mapping[str, type[PositionMethod]] = {
    method.name: method
    for method in (
        # RoPE frequencies
        rope_scaling.LinearInterpolation,
        rope_scaling.NTKAware,
        rope_scaling.RebasedRope,
        rope_scaling.DynamicNTK,
        yarn.NTKByParts,
        yarn.Yarn,
        yarn.Llama3Rope,
        rope_scaling.LongRoPE,
        rope_scaling.ProportionalRope,
        rope_scaling.TruncatedBasis,
        rope_scaling.PowerBasis,
        rope_scaling.E2LLM,
        clex.Clex,
        # relative position remapping
        relative_rope.SelfExtend,
        relative_rope.DPE,
        relative_rope.LMInfinite,
        # attention temperature
        query_scale.TempScale,
        query_scale.LogLength,
        query_scale.LogPosition,
        # learned position tables
        learned.GroupedTable,
        learned.RecurrentTable,
        learned.InterpolatedTable,
        # any positions
        Extrapolate,
    )
}
