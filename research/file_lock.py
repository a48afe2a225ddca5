"""Locks of files, which the operating system releases when their process ends."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from research.atomic_write import to_json
from research.processes import call_on_first

LOCK = "run.lock"  # name of the file that locks a folder


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


@contextlib.contextmanager
def lock_folder(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Keeps other runs out of a folder; commands that only read need no lock.

    The operating system releases the lock when the process ends, however it ends. With
    several processes, the first one holds it. A process may lock a folder twice.

    Args:
        folder: The folder, which is made if it is missing.
        name: Name of the file that is locked.

    Raises:
        ValueError: Another run is in this folder, or it cannot be written.
    """
    path = Path(folder) / name
    file = call_on_first(lambda: _acquire(path), "locking the folder")
    with file or contextlib.nullcontext():
        yield


def _acquire(path: Path) -> TextIO | None:
    """The locked file, with its holder written in it; None if it is held already."""
    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        file = try_lock(path)
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from error
    if file is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        file.truncate(0)
        file.write(to_json(holder | {"since": since}))
        file.flush()
        return file
    # Refuse, unless the holder is this very process
    try:
        other = json.loads(path.read_text())
    except json.JSONDecodeError:  # locked, but not written yet
        other = {"pid": "?", "host": "an unknown host", "since": "just now"}
    if {key: other[key] for key in holder} == holder:
        return None
    raise ValueError(
        f"another run is in {path.parent}: process {other['pid']} on {other['host']}, "
        f"since {other['since']}; wait for its end, stop it, or use another folder"
    )


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
