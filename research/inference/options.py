"""Parsing of the options that say how a model embeds."""

import re
from typing import Any

from research.text.prompts import parse_prompt

SIDES = {"true": True, "false": False}


def reads(
    *,
    prompt: str = "",
    instruction: str = "",
    prepend: str = "",
    layers: str = "",
    bidirectional: str = "",
    pool: str = "",
) -> dict[str, Any]:
    """How a model is read, as keyword arguments of `make_embedder`.

    Args:
        prompt: as `parse_prompt` reads it.
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
        found["prepend"] = parse_window(prepend)
    if layers:
        found["layers"] = parse_layers(layers)
    if bidirectional:
        if bidirectional not in SIDES:
            allowed = ", ".join(SIDES)
            raise ValueError(f"bidirectional is {bidirectional!r}; allowed: {allowed}")
        found["bidirectional"] = SIDES[bidirectional]
    if pool:
        found["pool"] = pool
    if instruction and not prompt:
        raise ValueError(f"the instruction {instruction!r} needs a prompt")
    if not prompt:
        return found
    asked = {"instruction": instruction, "prepend": bool(prepend)}
    chosen = parse_prompt(prompt, **asked)
    if chosen is None:
        return found | {"prompt": None}
    if pool:
        chosen = chosen._replace(pool=None)
    return found | {"prompt": chosen, "prompts": None}


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers of "-2" or "1;12".

    Raises:
        ValueError: the text is something else.
    """
    return _numbers(text, ";", "layers", "-2 or 1;12")


def parse_window(text: str) -> tuple[int, int]:
    """The window of blocks of "1:7".

    Raises:
        ValueError: the text is something else.
    """
    return _numbers(text, ":", "a window of blocks", "1:7", count=2)


def _numbers(
    text: str, between: str, what: str, form: str, count: int = 0
) -> tuple[int, ...]:
    parts = text.split(between)
    if not all(re.fullmatch(r"-?\d+", part) for part in parts) or (
        count and len(parts) != count
    ):
        raise ValueError(f"{text!r} is not {what}; write {form}")
    return tuple(map(int, parts))
