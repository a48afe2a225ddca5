"""Progress of a long phase on stderr: a bar on a terminal, a line elsewhere."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm

from research.processes import is_first

DELAY = 3.0  # seconds; nothing is shown of a phase that ends before
_SHOWN: set[str] = set()  # lines, which are not repeated


@contextlib.contextmanager
def show_progress(
    phase: str, total: int | None = None
) -> Iterator[Callable[[int], object]]:
    """Says that a phase is going on, once it has taken a few seconds.

    Args:
        phase: What is going on, such as "loading runs/mine".
        total: Number of items, for a bar; None for a line alone.

    Yields:
        A function to call with the number of items that are done since its last call.
    """
    has_bar = total is not None and sys.stderr.isatty()
    line = threading.Timer(DELAY, show_note, [f"{phase} ..."])
    line.daemon = True  # it does not keep a process that ends
    bar = tqdm(total=total, desc=phase, delay=DELAY, leave=False, disable=not has_bar)
    with bar:
        if not has_bar and is_first():
            line.start()
        try:
            yield bar.update
        finally:
            line.cancel()


def show_note(line: str) -> None:
    """Writes a line to stderr, once, in the first process."""
    if line not in _SHOWN and is_first():
        _SHOWN.add(line)
        tqdm.write(line, file=sys.stderr)
