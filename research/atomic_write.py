"""Atomic writes of files, folders and JSON, complete or not at all; reads of JSON."""

import contextlib
import gzip
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def atomic_write(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yields a draft path that is renamed to `path` if the block raises no error.

    Args:
        path: File or folder to make. An existing file is replaced.
        folder: Whether `path` is a folder; the draft is then an empty one.

    Yields:
        Path of the draft. It has the same file name as `path`, because some writers
        (NumPy, Matplotlib) choose the format by the suffix.

    Raises:
        FileExistsError: The folder exists and is not empty.
    """
    path = Path(path)
    if folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there and not empty")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The draft is in the target's folder: a rename is atomic only within one file
    # system. Files in a temporary folder get the default permissions, which those
    # made by `mkstemp` do not.
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
    ) as temporary:
        draft = Path(temporary) / path.name
        if folder:
            draft.mkdir()
        yield draft
        # Atomic, and only if the block raised no error
        os.replace(draft, path)


@contextlib.contextmanager
def open_gzip(path: Path) -> Iterator[TextIO]:
    """Opens a gzipped text file to write; its bytes depend on its content alone."""
    with (
        open(path, "wb") as file,
        # Neither the name nor the time is written
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text


def write_json(path: Path, content: Mapping) -> None:
    """Writes a mapping as indented JSON, atomically."""
    with atomic_write(path) as draft:
        draft.write_text(to_json(content, indent=2) + "\n")


def to_json(content: Any, **options) -> str:
    """Writes a value as JSON, in which null stands for numbers that are not finite.

    JSON has no NaN and no infinity (RFC 8259): other programs refuse a file with them.

    Args:
        content: Mappings, sequences, texts and numbers, those of NumPy and JAX too.
        **options: Further arguments of `json.dumps`.
    """
    content = _replace_not_finite(content)
    return json.dumps(content, allow_nan=False, default=_to_number, **options)


def _replace_not_finite(content: Any) -> Any:
    if isinstance(content, float):
        return _to_number(content)
    if isinstance(content, Mapping):
        return {key: _replace_not_finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return list(map(_replace_not_finite, content))
    return content


def _to_number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def read_json(path: Path, *, missing: Any = None, kind: type = dict) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        missing: What is returned if there is no such file; None for an error.
        kind: The type of the content, a key of KINDS.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, or its content is not of the kind.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        if missing is not None:
            return missing
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, kind):
        found = KINDS.get(type(content), "a value")
        raise ValueError(f"{path} holds {found}; it should hold {KINDS[kind]}")
    return content


KINDS = {dict: "a JSON object", list: "a JSON list"}
