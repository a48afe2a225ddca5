"""Config sections: a function's name and its keyword arguments, as data or as text.

A section is a mapping {"name": ..., argument: value, ...}; as text it is a Python call,
"yarn(scale=8)". The signature of the named function is the schema of both.
"""

import ast
import functools
import inspect
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections.config_dict import placeholder

from research.config_bounds import check_bounds

Table = Mapping[str, Callable[..., Any]]
# How values are written in messages: long ones are cut in the middle.
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 200


def section(table: Table, name: str, **arguments) -> ml_collections.ConfigDict:
    """Makes the config section for `table[name]`: all its keyword-only arguments.

    A default of None becomes a placeholder of the annotated type, so that it can be
    overridden on the command line.

    Args:
        table: Functions by name.
        name: Name of the function.
        **arguments: Values of some arguments; the others get their defaults.

    Returns:
        ConfigDict with `name` and every keyword-only argument.

    Raises:
        ValueError: The table has no such name, the function no such argument, or a
            required argument is missing.
    """
    # Defaults of the signature, replaced by the given arguments
    values = {"name": name}
    for key, parameter in keyword_parameters(table, name, arguments).items():
        value = arguments.get(key, parameter.default)
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name} needs a value for {key}")
        # A placeholder keeps the type, so that the flag can be parsed.
        if value is None:
            value = placeholder(_resolve_type(parameter.annotation))
        values[key] = value
    return ml_collections.ConfigDict(values)


def bind(table: Table, config: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a section names, with the section's arguments bound to it.

    Raises:
        ValueError: There is no such function, or it has no such argument, or one of
            another type.
    """
    arguments = dict(config.items())
    name = arguments.pop("name")
    parameters = keyword_parameters(table, name, arguments)
    for key, value in arguments.items():
        check_type(name, key, value, parameters[key].annotation)
    return functools.partial(table[name], **arguments)


def build(table: Table, config: Mapping[str, Any], *args):
    """Calls the function that a section names: `table[name](*args, **arguments)`."""
    return bind(table, config)(*args)


def build_nothing(*context: Any) -> None:
    """What a section named "none" builds."""


class Call(NamedTuple):
    """A call parsed from text, not executed yet: `name(*args, **kwargs)`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def parse_calls(text: str) -> list[Call]:
    """Parses calls in Python syntax: "yarn(scale=8) | log_length()".

    A name alone is a call without arguments. Values are Python's literals: numbers,
    quoted text, True, False, None, and tuples of these.

    Args:
        text: Calls separated by |.

    Raises:
        ValueError: The text is not a sequence of calls.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise _make_call_error(text) from None
    # "a | b | c" is parsed as (a | b) | c: collect the calls from right to left.
    nodes = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        nodes.append(node.right)
        node = node.left
    return [_read_call(item, text) for item in [node, *reversed(nodes)]]


def parse_call(text: str) -> Call:
    """Parses one call in the syntax of `parse_calls`.

    Raises:
        ValueError: The text is not a call, or holds several calls.
    """
    calls = parse_calls(text)
    if len(calls) > 1:
        names = ", ".join(call.name for call in calls)
        raise ValueError(f"{text!r} holds {len(calls)} calls ({names}); write one")
    return calls[0]


def parse_section(table: Table, text: str) -> ml_collections.ConfigDict:
    """Parses a call such as "cosent(scale=20)" into a config section.

    Raises:
        ValueError: The text is not one call, the table has no such function, or an
            argument is unknown, missing, of another type or not named.
    """
    return _make_section(table, parse_call(text))


def parse_section_list(table: Table, text: str) -> list[ml_collections.ConfigDict]:
    """Parses "infonce(temperature=0.02) | spread_out()" into sections, in order.

    Raises:
        ValueError: As `parse_section`, for any of the calls.
    """
    return [_make_section(table, call) for call in parse_calls(text)]


def parse_sections(table: Table, text: str) -> ml_collections.ConfigDict:
    """Parses "pydocs(limit=400) | files(path='a.jsonl')" into sections by name.

    Raises:
        ValueError: As `parse_section`, or a function is named twice.
    """
    sections = {}
    for call in parse_calls(text):
        if call.name in sections:
            raise ValueError(f"{text!r} names {call.name} twice; set one key for each")
        sections[call.name] = _make_section(table, call)
    return ml_collections.ConfigDict(sections)


def _make_section(table: Table, call: Call) -> ml_collections.ConfigDict:
    if call.args:
        raise ValueError(
            f"{call.name}({call.args[0]!r}): write argument=value; a config section "
            "names its arguments"
        )
    parameters = keyword_parameters(table, call.name, call.kwargs)
    for key, value in call.kwargs.items():
        check_type(call.name, key, value, parameters[key].annotation)
    return section(table, call.name, **call.kwargs)


def format_call(config: Mapping[str, Any]) -> str:
    """Writes a section as text for `parse_call`: "yarn(scale=8)" or "mean"."""
    arguments = dict(config.items())
    name = arguments.pop("name")
    listed = ", ".join(
        f"{key}={_format_literal(value)}" for key, value in arguments.items()
    )
    return f"{name}({listed})" if listed else name


def bind_call(table: Table, call: Call, *args) -> Callable[..., Any]:
    """Binds a call's arguments to the table's function, after the arguments `args`.

    Raises:
        ValueError: The table has no such function, or the function no such argument, or
            an argument is missing or of another type.
    """
    # Check the names of the arguments, then bind them and check their types.
    function = functools.partial(_find_function(table, call.name), *args)
    parameters = inspect.signature(function).parameters
    allowed = _check_names(call.name, call.kwargs, parameters)
    try:
        # Required arguments may still be missing here
        bound = inspect.signature(function).bind_partial(*call.args, **call.kwargs)
    except TypeError as error:
        raise ValueError(f"{call.name}: {error}; its arguments are {allowed}") from None
    for key, value in bound.arguments.items():
        check_type(call.name, key, value, parameters[key].annotation)
    return functools.partial(function, *call.args, **call.kwargs)


def build_call(table: Table, call: Call, *args):
    """Executes a call parsed from text: `table[name](*args, ...)`.

    Raises:
        ValueError: As `bind_call`, or a required argument is missing.
    """
    function = bind_call(table, call, *args)
    # Required arguments that are still missing
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ValueError(f"{call.name} needs a value for {key}")
    return function()


def check_type(function: str, argument: str, value: Any, annotation: Any) -> None:
    """Raises ValueError if a value has another type than its argument, or is too small.

    The types are those of the annotation, the bounds those of `config_bounds`.
    """
    if not _fits(value, annotation):
        # Type names for users
        words = {int: "a whole number", float: "a number", str: "quoted text"}
        words |= {bool: "True or False"}
        kind = words.get(annotation, str(annotation).replace("typing.", ""))
        raise ValueError(f"{function}'s {argument} is {value!r}; it takes {kind}")
    check_bounds(function, argument, value)


def check_option(argument: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError if an argument's value is not an allowed one."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(allowed)}")


def diff_configs(old: Any, new: Any, name: str = "") -> list[str]:
    """Lists the differences of two mappings: "loss.scale is 2 and was 1"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            # Keys of both mappings, in order, without duplicates
            for key in dict.fromkeys([*old, *new])
            for line in diff_configs(old.get(key), new.get(key), f"{name}.{key}")
        ]
    if old == new:
        return []
    return [f"{name[1:]} is {SHORT.repr(new)} and was {SHORT.repr(old)}"]


def keyword_parameters(
    table: Table, name: str, arguments: Mapping[str, Any]
) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of `table[name]`; checks the arguments' names."""
    parameters = inspect.signature(_find_function(table, name)).parameters.values()
    # The other parameters are arguments of `build`, not of the config
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    _check_names(name, arguments, known)
    return known


def _find_function(table: Table, name: str) -> Callable[..., Any]:
    """The table's function; raises ValueError with the names that it has."""
    if name not in table:
        raise ValueError(f"unknown name {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def _check_names(function: str, names: Iterable[str], known: Iterable[str]) -> str:
    """Raises ValueError for an unknown argument; returns the known ones as a list."""
    allowed = ", ".join(known) or "none"
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"{function} has no argument {', '.join(unknown)}; it has {allowed}"
        )
    return allowed


def _resolve_type(annotation) -> type:
    """The type T of an annotation `T | None`."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = typing.get_origin(options[0]) or options[0]
    return annotation if isinstance(annotation, type) else str


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a literal matches an annotation; unknown annotations match anything."""
    if isinstance(annotation, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    # bool is a subclass of int, so it is excluded from the numbers.
    origin = typing.get_origin(annotation) or annotation
    if origin is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and not math.isnan(value)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (bool, str, type(None), types.NoneType):
        return isinstance(value, origin)
    # tuple[T, ...] has any length, tuple[T, U] a fixed one
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        inner = typing.get_args(annotation)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(item, inner[0]) for item in value)
        return not inner or (len(value) == len(inner) and all(map(_fits, value, inner)))
    return True


def _read_call(node: ast.expr, text: str) -> Call:
    """The call that a node of a syntax tree is."""
    if isinstance(node, ast.Name):
        return Call(node.id)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _make_call_error(text)
    if any(keyword.arg is None for keyword in node.keywords):
        raise _make_call_error(text)
    try:
        args = tuple(ast.literal_eval(arg) for arg in node.args)
        kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    except ValueError:
        raise ValueError(
            f"{text!r}: the arguments of {node.func.id} are not all numbers, quoted "
            'text, True, False, None or tuples of these; write text as "text"'
        ) from None
    return Call(node.func.id, args, kwargs)


def _make_call_error(text: str) -> ValueError:
    return ValueError(
        f"{text!r} is no call; write name or name(argument=value), with | between "
        'several and text in quotes, such as yarn(scale=8) or template(query="{text}")'
    )


def _format_literal(value: Any) -> str:
    """A value as Python writes it; lists, which JSON makes of tuples, as tuples."""
    if isinstance(value, list | tuple):
        items = ", ".join(map(_format_literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    return repr(value)
