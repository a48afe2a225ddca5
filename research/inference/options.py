"""Parsing of embedding options, from flags and ablations, for `Embedder`."""

import ast
from typing import Any

from research.config_sections import check_option
from research.text.prompts import parse_prompt
from research.text.templates import Prompt

# No templates: only the model's own `prompts` are put before the texts.
PLAIN = Prompt(templates={})


def embedder_options(
    *,
    prompt: str = "",
    instruction: str = "",
    prepend: str = "",
    layers: str = "",
    bidirectional: str = "",
    pool: str = "",
    token_transform: str = "",
) -> dict[str, Any]:
    """Converts options to keyword arguments of `Embedder`; empty options are left out.

    Args:
        prompt: Prompt, as `parse_prompt` reads it.
        instruction: Instruction of the prompt.
        prepend: Blocks of token prepending, as `parse_window` reads them.
        layers: Layers, as `parse_layers` reads them.
        bidirectional: "True" or "False".
        pool: Pooling, as `parse_pooling` reads it.
        token_transform: Transform, as `parse_token_transform` reads it.

    Raises:
        ValueError: An option is malformed, or there is an instruction without a prompt.
    """
    # Options that change the encoder.
    options = {}
    if prepend:
        options["prepend"] = parse_window(prepend)
    if layers:
        options["layers"] = parse_layers(layers)
    if bidirectional:
        check_option("bidirectional", bidirectional, ("True", "False"))
        options["bidirectional"] = bidirectional == "True"
    # Options that change the tokens and their pooling.
    if pool:
        options["pool"] = pool
    if token_transform:
        options["token_transform"] = token_transform
    if instruction and not prompt:
        raise ValueError(f"the instruction {instruction!r} needs a prompt")
    if prompt:
        options["prompt"] = (
            parse_prompt(prompt, instruction=instruction, prepend=bool(prepend))
            or PLAIN
        )
    return options


def parse_layers(text: str) -> tuple[int, ...]:
    """Reads numbers of layers, such as "-2" or "(1, 12)".

    Raises:
        ValueError: The text does not have this form.
    """
    layers = _parse_integers(text)
    if not layers:
        raise ValueError(
            f"{text!r} names no layers; write -2, or (1, 12) for their average"
        )
    return layers


def parse_window(text: str) -> tuple[int, int]:
    """Reads a window (start, exit) of blocks, such as "(1, 7)".

    Raises:
        ValueError: The text does not have this form.
    """
    window = _parse_integers(text)
    if window is None or len(window) != 2:
        raise ValueError(f"{text!r} is not a window of blocks; write (1, 7)")
    return window


def parse_dims(text: str) -> tuple[int, ...]:
    """Reads numbers of dimensions, such as "308" or "(308, 381)".

    Raises:
        ValueError: The text does not have this form.
    """
    dims = _parse_integers(text)
    if not dims:
        raise ValueError(f"{text!r} names no dimensions; write 308, or (308, 381)")
    return dims


def _parse_integers(text: str) -> tuple[int, ...] | None:
    """Reads integers, such as "-2" or "(1, 12)"; None for any other text."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    # A bool is an int in Python, but not here.
    numbers = value if isinstance(value, tuple) else (value,)
    return numbers if all(type(number) is int for number in numbers) else None
