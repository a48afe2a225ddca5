"""Reads the JSON files of a model folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(file: Path, *, missing: Any = None, kind: type = dict) -> Any:
    """Parses a JSON file.

    Args:
        file: The file.
        missing: What is returned if there is no such file; None for an error.
        kind: The type of the content, dict or list.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, or its content is not of the kind.
    """
    if not file.exists():
        if missing is not None:
            return missing
        raise FileNotFoundError(f"{file.parent} has no {file.name}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, kind):
        raise ValueError(
            f"{file} holds a {type(content).__name__}, but should hold a "
            f"{kind.__name__}"
        )
    return content


def check_number(file: Path, fields: Mapping[str, Any], name: str) -> Any:
    """The number in a field, or None; a text such as "32" is an error.

    Raises:
        ValueError: The field has a value of another type, NaN, or one below 1.
    """
    value = fields.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or value < 1:
        raise ValueError(
            f"{file} has {name} {value!r}, but it should be a number of at least 1"
        )
    return value
