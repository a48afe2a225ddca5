"""A config section names a function and holds its keyword arguments."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

Table = Mapping[str, Callable[..., Any]]


def section(table: Table, name: str, **arguments) -> ml_collections.ConfigDict:
    """The config of calling `table[name]`: every keyword-only argument with its value.

    A default of None becomes a placeholder of the annotated type, so that it can be
    overridden on the command line.

    Raises:
        ValueError: the table has no such name, or a needed argument is missing.
        TypeError: the function has no such argument.
    """
    parameters = _keywords(table, name)
    unknown = sorted(set(arguments) - set(parameters))
    if unknown:
        raise TypeError(
            f"{name} has no argument {', '.join(unknown)}; "
            f"it has {', '.join(parameters) or 'none'}"
        )
    values = {"name": name}
    for key, parameter in parameters.items():
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
    parameters = _keywords(table, name)
    unknown = sorted(set(arguments) - set(parameters))
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; "
            f"it has {', '.join(parameters) or 'none'}"
        )
    return functools.partial(table[name], **arguments)


def build(table: Table, config: Mapping[str, Any], *args):
    """Calls the function that a section names: `table[name](*args, **arguments)`."""
    return bind(table, config)(*args)


def _keywords(table: Table, name: str) -> dict[str, inspect.Parameter]:
    if name not in table:
        raise ValueError(f"unknown name {name!r}; known: {', '.join(sorted(table))}")
    parameters = inspect.signature(table[name]).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def _type(annotation) -> type:
    """The type T of an annotation `T | None`."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = typing.get_origin(options[0]) or options[0]
    return annotation if isinstance(annotation, type) else str
