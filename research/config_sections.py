"""A config section names a function and holds its keyword arguments."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

Table = Mapping[str, Callable[..., Any]]


def section(table: Table, name: str, **arguments) -> ml_collections.ConfigDict:
    """The config of calling `table[name]`: every keyword-only argument with its value.

    A default of None becomes a placeholder of the annotated type, so that it can be
    overridden on the command line.

    Raises:
        ValueError: the table has no such name, the function no such argument, or a
            needed argument is missing.
    """
    values = {"name": name}
    for key, parameter in _keywords(table, name, arguments).items():
        value = arguments.get(key, parameter.default)
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name} needs a value for {key}")
        if value is None:
            value = placeholder(_type(parameter.annotation))
        values[key] = value
    return ml_collections.ConfigDict(values)


def bind(table: Table, config: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a section names, with the section's keyword arguments."""
    arguments = dict(config.items())
    name = arguments.pop("name")
    _keywords(table, name, arguments)
    return functools.partial(table[name], **arguments)


def build(table: Table, config: Mapping[str, Any], *args):
    """Calls the function that a section names: `table[name](*args, **arguments)`."""
    return bind(table, config)(*args)


def differing(old: Any, new: Any, name: str = "") -> list[str]:
    """What two mappings differ in: lines "a.b is 2 and was 1"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in differing(old.get(key), new.get(key), f"{name}.{key}")
        ]
    return [] if old == new else [f"{name[1:]} is {new!r} and was {old!r}"]


def _keywords(
    table: Table, name: str, arguments: Mapping[str, Any]
) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of `table[name]`, which the arguments are among."""
    if name not in table:
        raise ValueError(f"unknown name {name!r}; known: {', '.join(sorted(table))}")
    parameters = inspect.signature(table[name]).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )
    return known


def _type(annotation) -> type:
    """The type T of an annotation `T | None`."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = typing.get_origin(options[0]) or options[0]
    return annotation if isinstance(annotation, type) else str


def check_option(argument: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError if an argument's value is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(allowed)}")


def parse(text: str) -> dict[str, dict[str, Any]]:
    """The methods of "yarn:scale=8,original=512+log_length", in this order.

    Values are numbers, true, false or words; those of a tuple are joined by semicolons.

    Raises:
        ValueError: the text has another form, or names a method twice.
    """
    methods: dict[str, dict[str, Any]] = {}
    for part in re.split(r"\+(?=[a-z])", text):
        name, _, rest = part.partition(":")
        arguments = dict(item.partition("=")[::2] for item in rest.split(",") if item)
        if not name or not all(arguments) or not all(arguments.values()):
            raise ValueError(
                f"{part!r} is no method; write name:argument=value,argument=value, and "
                "+ before the next one"
            )
        if name in methods:
            raise ValueError(f"{name} is there twice")
        methods[name] = {key: _parsed(value) for key, value in arguments.items()}
    return methods


def _parsed(value: str) -> Any:
    if ";" in value:
        return tuple(_parsed(item) for item in value.split(";") if item)
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
