"""Locks of files, which the operating system releases when their process ends."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def try_lock(path: Path) -> TextIO | None:
    """Opens a file and locks it; closing the file releases the lock.

    Args:
        path: The file, which is created if it is missing, and stays.

    Returns:
        The open file, or None if another process holds its lock. On a file system
        without locks the file is not locked, and a warning says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        return file
    file.close()
    return None


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is deleted at the end; waits while others do."""
    file = try_lock(path)
    if file is None:
        print(f"waiting for another process, which holds {path}", file=sys.stderr)
    # The last holder may have deleted the file that was locked here
    while file is None or not _is_at(path, file):
        file = path.open("a+")
        _lock(file, fcntl.LOCK_EX)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(file: TextIO, operation: int) -> bool:
    """Locks an open file; returns False if another process holds its lock."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        print(
            f"warning: {file.name} cannot be locked ({error.strerror}); take care that "
            "no two runs write there at once",
            file=sys.stderr,
        )
    return True


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
