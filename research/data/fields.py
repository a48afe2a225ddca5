"""Fields of records: texts, names and numbers, each of its own type or refused."""

import json
import math
from collections.abc import Mapping
from typing import Any


class Record:
    """A record of a file or a data set, whose fields are read by name and by type.

    A value of another type is never turned into text: null is not "None". Errors name
    the record and the field.

    Args:
        place: Where the record is, such as "a.jsonl line 3", for error messages.
        values: {name of the field: its value}.

    Attributes:
        used: Names of the fields that have been looked at.
        has_margins: Whether a list of scores holds differences; None without a list.

    Raises:
        ValueError: The values are not a mapping.
    """

    def __init__(self, place: str, values: Mapping[str, Any]):
        if not isinstance(values, Mapping):
            raise ValueError(f"{place} is {_show(values)}, not an object with fields")
        self.place = place
        self.values = values
        self.used: set[str] = set()
        self.has_margins: bool | None = None

    def has(self, name: str) -> bool:
        """Whether the field is there and holds something: not null, not ""."""
        self.used.add(name)
        return self.values.get(name) not in (None, "")

    def read_text(self, *names: str, allow_blank: bool = False) -> str:
        """The text in the first of these fields that the record has.

        Args:
            *names: Names of the field, of which records have one.
            allow_blank: Whether the text may be empty, or all spaces.

        Raises:
            ValueError: There is no such field, or it holds no text.
        """
        name, value = self._find(names)
        return check_text(f"{self.place}: {name}", value, allow_blank=allow_blank)

    def read_title(self) -> str:
        """The title, a field that may be missing, null or empty."""
        if not self.has("title"):
            return ""
        return self.read_text("title", allow_blank=True)

    def read_texts(self, name: str) -> tuple[str, ...]:
        """The texts of a field: one text or a list; () if it is missing or empty."""
        if not self.has(name):
            return ()
        value = self._find((name,))[1]
        label = f"{self.place}: {name}"
        if isinstance(value, list | tuple):
            return tuple(check_text(f"{label}[{i}]", v) for i, v in enumerate(value))
        return (check_text(label, value),)

    def read_list(self, name: str) -> list:
        """The items of a field that holds a list; [] if it is missing or null."""
        self.used.add(name)
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise ValueError(f"{self.place}: {name} is {_show(value)}, not a list")
        return list(value)

    def read_name(self, *names: str) -> str:
        """The id, class or group in a field: a text or a whole number.

        Raises:
            ValueError: There is no such field, or it holds something else.
        """
        name, value = self._find(names)
        return check_name(f"{self.place}: {name}", value)

    def read_number(self, *names: str) -> float:
        """The number in the first of these fields that the record has.

        Raises:
            ValueError: There is no such field, or it holds no finite number.
        """
        name, value = self._find(names)
        return check_number(f"{self.place}: {name}", value)

    def read_numbers(self, name: str) -> tuple[float, ...]:
        """The numbers of a field that holds a list; () if it is missing or null."""
        label = f"{self.place}: {name}"
        return tuple(
            check_number(f"{label}[{i}]", value)
            for i, value in enumerate(self.read_list(name))
        )

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """(name, value) of the first field that is not null, or else of the first."""
        present = [name for name in names if name in self.values]
        if not present:
            found = ", ".join(map(str, self.values)) or "none"
            raise ValueError(
                f"{self.place}: no column {' or '.join(names)}; found {found}"
            )
        filled = (name for name in present if self.values[name] is not None)
        name = next(filled, present[0])
        self.used.add(name)
        return name, self.values[name]


def check_text(label: str, value: Any, *, allow_blank: bool = False) -> str:
    """The value, if it is a text; TFDS stores texts as bytes.

    Raises:
        ValueError: It is no text, it is blank, or it has half of a character.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise ValueError(f"{label} is {_show(value)}, not a text")
        text.encode()
    except UnicodeError as error:
        # JSON can hold "\ud83d", the first half of a pair that makes an emoji.
        raise ValueError(
            f"{label} is not valid Unicode at character {error.start}: "
            f"{_show(text if isinstance(value, str) else value)}"
        ) from None
    if not (allow_blank or text.strip()):
        raise ValueError(f"{label} is empty")
    return text


def check_name(label: str, value: Any) -> str:
    """The value as text, if it is a text or a whole number.

    Raises:
        ValueError: It is neither, or an empty text.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{label} is {_show(value)}, not a text or a whole number")
    return check_text(label, value)


def check_number(label: str, value: Any) -> float:
    """The value as a number; it may be written as text, as in a table.

    Raises:
        ValueError: It is no number, or not a finite one.
    """
    try:
        number = float(value)
        # Neither true nor Python's 1_000 is a number in a file
        if isinstance(value, bool) or isinstance(value, str) and "_" in value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{label} is {_show(value)}, not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{label} is {_show(value)}, not a finite number")
    return number


def _show(value: Any) -> str:
    """A value as JSON writes it, cut to 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
