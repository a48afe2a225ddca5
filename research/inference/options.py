"""Parsing of the options that say how a model embeds, from flags and tables."""

import ast
from typing import Any

from research.config_sections import check_option
from research.text.prompts import parse_prompt
from research.text.templates import Prompt

# Texts as they are, after the model's own `prompts`.
PLAIN = Prompt(templates={})


def embedder_options(
    *,
    prompt: str = "",
    instruction: str = "",
    prepend: str = "",
    layers: str = "",
    bidirectional: str = "",
    pool: str = "",
) -> dict[str, Any]:
    """The keyword arguments of `Embedder` that some options stand for.

    Args:
        prompt: As `parse_prompt` reads it.
        instruction: The instruction of the prompt.
        prepend: As `parse_window` reads it.
        layers: As `parse_layers` reads it.
        bidirectional: "True" or "False".
        pool: A pooling, as `parse_pooling` reads it.

    Returns:
        The arguments of the options that are not empty.

    Raises:
        ValueError: An option has another form, or there is an instruction and no
            prompt.
    """
    # What changes the encoder
    options = {}
    if prepend:
        options["prepend"] = parse_window(prepend)
    if layers:
        options["layers"] = parse_layers(layers)
    if bidirectional:
        check_option("bidirectional", bidirectional, ("True", "False"))
        options["bidirectional"] = bidirectional == "True"
    # What changes the tokens and their pooling
    if pool:
        options["pool"] = pool
    if instruction and not prompt:
        raise ValueError(f"the instruction {instruction!r} needs a prompt")
    if prompt:
        options["prompt"] = (
            parse_prompt(prompt, instruction=instruction, prepend=bool(prepend))
            or PLAIN
        )
    return options


def parse_layers(text: str) -> tuple[int, ...]:
    """The numbers of layers in "-2" or "(1, 12)".

    Raises:
        ValueError: The text has another form.
    """
    layers = _parse_integers(text)
    if not layers:
        raise ValueError(
            f"{text!r} names no layers; write -2, or (1, 12) for their average"
        )
    return layers


def parse_window(text: str) -> tuple[int, int]:
    """The window (start, exit) of blocks in "(1, 7)".

    Raises:
        ValueError: The text has another form.
    """
    window = _parse_integers(text)
    if window is None or len(window) != 2:
        raise ValueError(f"{text!r} is not a window of blocks; write (1, 7)")
    return window


def _parse_integers(text: str) -> tuple[int, ...] | None:
    """The integers of "-2" or "(1, 12)"; None for other text."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    numbers = value if isinstance(value, tuple) else (value,)
    return numbers if all(type(number) is int for number in numbers) else None
