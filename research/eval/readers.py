"""Texts to rows of tokens: as they are, or by the templates of a method."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from research import sections
from research.data.methods import METHODS
from research.data.pieces import PST, with_token
from research.data.templates import Method, in_templates
from research.data.text import token_ids
from research.eval.rows import Rows
from research.models import context, reading

SIDES = {"true": True, "false": False}

# read(texts, role) -> the rows of the texts for each template; their vectors are
# averaged.
Reader = Callable[[Sequence[str], str], list[Rows]]


def plain_reader(
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    prompts: Mapping[str, str] | None = None,
) -> Reader:
    """Texts with the prompt of their role before them, cut to `max_length` tokens."""

    def read(texts, role):
        prompt = (prompts or {}).get(role, "")
        return [Rows(token_ids(tokenizer, texts, max_length, prompt=prompt))]

    return read


def method_reader(
    method: Method,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    mark: int | None = None,
) -> Reader:
    """Texts in the templates of a method.

    Args:
        method: one of `templates.METHODS`.
        tokenizer: it need not know the token <PST>.
        max_length: of a row, the templates included.
        mark: the id of <PST>; None where it has no place.
    """
    if mark is not None:
        tokenizer, _ = with_token(tokenizer)

    def rows(ids, pooled, marks):
        if marks is not None:
            ids = [
                _put(row, place, mark) for row, place in zip(ids, marks, strict=True)
            ]
        return Rows(ids, [chosen.astype(np.int32) for chosen in pooled], marks)

    def read(texts, role):
        parts = in_templates(method, tokenizer, texts, max_length, role)
        return [rows(*part) for part in parts]

    return read


def parse_method(
    text: str, *, instruction: str = "", prepend: bool = False
) -> Method | None:
    """The method of "echo" or "prompteol:prepend=true", as `context.parse` reads it.

    Args:
        text: a name in METHODS, and perhaps arguments.
        instruction: one more argument.
        prepend: whether <PST> shall have a place.

    Returns:
        None for plain, which takes the model's prompts.

    Raises:
        ValueError: there is no such method, or it takes no such argument.
    """
    (name, arguments), *others = context.parse(text).items()
    if others:
        raise ValueError(f"{text!r} is several methods; choose one")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    asked = {"instruction": instruction, "prepend": prepend}
    for key, value in asked.items():
        takers = [other for other in METHODS if key in _arguments(other)]
        if value and name not in takers:
            raise ValueError(f"{name} takes no {key}; {', '.join(takers)} do")
        if value:
            arguments[key] = value
    method = sections.build(METHODS, {"name": name, **arguments})
    return None if name == "plain" else method


def reads(
    *,
    method: str = "",
    instruction: str = "",
    prepend: str = "",
    layer: str = "",
    bidirectional: str = "",
    pool: str = "",
) -> dict[str, Any]:
    """How a model is read, as keyword arguments of `make_embedder`.

    Args:
        method: as `parse_method` reads it.
        instruction: of the method.
        prepend: the window of token prepending, such as 1:7.
        layer: as `reading.parse_layers` reads it.
        bidirectional: 'true' or 'false'.
        pool: a pooling, before that of the method.

    Returns:
        those that are said; the model's own remain for arguments that are empty.

    Raises:
        ValueError: one is not what it should be, or an instruction without a method.
    """
    found = {}
    if prepend:
        found["prepend"] = reading.parse_window(prepend)
    if layer:
        found["layers"] = reading.parse_layers(layer)
    if bidirectional:
        if bidirectional not in SIDES:
            allowed = ", ".join(SIDES)
            raise ValueError(f"bidirectional is {bidirectional!r}; allowed: {allowed}")
        found["bidirectional"] = SIDES[bidirectional]
    if pool:
        found["pool"] = pool
    if instruction and not method:
        raise ValueError(f"the instruction {instruction!r} needs a method")
    if not method:
        return found
    asked = {"instruction": instruction, "prepend": bool(prepend)}
    chosen = parse_method(method, **asked)
    if chosen is None:
        return found | {"method": None}
    if pool:
        chosen = chosen._replace(pool=None)
    return found | {"method": chosen, "prompts": None}


def marked(method: Method | None) -> bool:
    """Whether every template of the method has a place for <PST>.

    Raises:
        ValueError: only some of them have.
    """
    if method is None:
        return False
    every = [t for templates in method.templates.values() for t in templates]
    places = {any(piece.special == PST for piece in template) for template in every}
    if len(places) > 1:
        raise ValueError(f"only some templates of the method have a place for {PST}")
    return places.pop()


def _put(row: np.ndarray, place: int, token: int) -> np.ndarray:
    """The row with a token put at that place."""
    return np.where(np.arange(len(row)) == place, np.int32(token), row)


def _arguments(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(METHODS[name]).parameters
