"""What may become of a damaged input: it is read, refused, or a fault."""

import re

LONGEST = 700  # characters of a message
# Parts of messages of Python's own functions, which do not say what to change.
PYTHON = r"invalid literal|could not convert|to unpack|object is not|must be a mapping"


class Fault(Exception):
    """An input that is neither refused well nor read well."""


class Refused(Exception):
    """An input that is refused by a good sentence."""


def attempt(function, *arguments, names=(), **options):
    """Calls a function that may refuse its input.

    Args:
        function: The function.
        *arguments: Its arguments.
        names: Texts of which the refusal has to contain one, such as the file's name.
        **options: Its keyword arguments.

    Raises:
        Refused: It raised a ValueError or OSError with a good message.
        Fault: Its message says too little or too much.
    """
    try:
        return function(*arguments, **options)
    except (ValueError, OSError) as error:
        message = f"{error}"
        if type(error) not in (ValueError, OSError, FileNotFoundError):
            raise Fault(f"{type(error).__name__}: {message[:300]}") from error
        if not message.strip() or len(message) > LONGEST or "Traceback" in message:
            raise Fault(
                f"message of {len(message)} characters: {message[:300]}"
            ) from error
        if names and not any(str(name) in message for name in names):
            raise Fault(f"names neither of {names}: {message[:300]}") from error
        # Messages of Python's own functions
        if "flag --" not in message and re.search(PYTHON, message):
            raise Fault(f"says nothing to a user: {message[:300]}") from error
        raise Refused(message) from error


def check(condition, *values):
    """Raises Fault with the values unless the condition holds."""
    if not condition:
        raise Fault("differs from the oracle: " + " | ".join(map(repr, values))[:600])


def is_number(value):
    """Whether a value is a number, or text of one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)
