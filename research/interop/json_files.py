"""Checks of values in the JSON files of a model folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
