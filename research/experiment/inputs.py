"""Hashes of what a config reads: files, folders, models and the installed packages."""

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.data.docstrings import (
    find_package_folders,
    find_python_files,
    hash_packages,
)
from research.interop.load import resolve_folder

# Files of a workdir that its model depends on; others, such as logs, change later.
WORKDIR_FILES = ("model.json", "tokenizer.json", "best.json", "checkpoints/**/*")


def hash_inputs(config: Any) -> dict[str, str]:
    """{text in a config: hash of the content that it names}, of all that is read.

    Args:
        config: Config, section or single value. A text in it may name a file, a folder,
            a model of an installed package, or pydocs.
    """
    return {
        text: content
        for text in sorted(set(_iterate_texts(config)))
        if (content := _hash_input(text))
    }


def _hash_input(text: str) -> str:
    """The hash of the content that a text names; "" if it names none."""
    if text.startswith("pydocs"):
        return _hash_installed_packages()
    if text.startswith("package:"):
        return hash_path(resolve_folder(text))
    # Punctuation, as in a list of tokens, is no path: "/" would be the whole disk
    if not any(map(str.isalnum, text)):
        return ""
    # Unlike Path.exists, it is False for a text that is too long for a path.
    path = os.path.expanduser(text)
    return hash_path(Path(path)) if os.path.exists(path) else ""


def hash_path(path: Path) -> str:
    """Hash of the content of a file, or of the names and contents of a folder.

    Of a workdir, only the files that its model depends on are read.
    """
    files = [path]
    if path.is_dir():
        is_workdir = (path / "model.json").is_file()
        patterns = WORKDIR_FILES if is_workdir else ("**/*",)
        files = sorted(file for pattern in patterns for file in path.glob(pattern))
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        if file.is_file():
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "blake2b").hexdigest()
            digest.update(f"{file.relative_to(path)} {content}\n".encode())
    return digest.hexdigest()


@functools.cache
def _hash_installed_packages() -> str:
    packages = hash_packages(find_python_files(find_package_folders()))
    return hashlib.blake2b(repr(packages).encode(), digest_size=16).hexdigest()


def _iterate_texts(value: Any) -> Iterator[str]:
    """Yields every text in nested mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _iterate_texts(part)
