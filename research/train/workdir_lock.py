"""The lock of a workdir, by which a second run in it is refused."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from research.atomic_write import to_json
from research.file_lock import try_lock
from research.processes import call_on_first


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir; commands that only read need no lock.

    The operating system releases the lock when the process ends, however it ends. With
    several processes, the first one holds it. A process may lock a workdir twice.

    Raises:
        ValueError: Another run is in this workdir, or it cannot be written.
    """
    path = Path(workdir) / "run.lock"
    file = call_on_first(lambda: _acquire(path), "locking the workdir")
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
        f"since {other['since']}; wait for its end, stop it, or use another workdir"
    )
