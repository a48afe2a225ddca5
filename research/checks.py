"""What arguments can be."""

from collections.abc import Iterable


def check_option(argument: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError if an argument's value is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(allowed)}")
