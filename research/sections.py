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
