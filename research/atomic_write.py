"""Atomic writes: a file, a folder or JSON appears complete or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A draft to write to, which becomes `path` if the block ends without an error.

    Args:
        path: File or folder to make. An existing file is replaced.
        folder: Whether `path` is a folder; the draft is then an empty one.

    Yields:
        Path of the draft. Its name is that of `path`, so that writers which go by the
        suffix (NumPy, Matplotlib) see the same one.

    Raises:
        FileExistsError: The folder exists and is not empty.
    """
    path = Path(path)
    if folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there and not empty")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename is atomic only within one file system. Files made in
    # the temporary folder have the usual rights, unlike those of `mkstemp`.
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
    ) as temporary:
        draft = Path(temporary) / path.name
        if folder:
            draft.mkdir()
        yield draft
        os.replace(draft, path)


def write_json(path: Path, content: Mapping) -> None:
    """Writes a mapping as indented JSON, atomically."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(content, indent=2, default=float) + "\n")
