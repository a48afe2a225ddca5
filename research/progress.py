"""Progress of a long phase on stderr: a bar on a terminal, a line elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from research.processes import is_first

DELAY = 3.0  # seconds; nothing is shown of a phase that ends before
INTERVAL = 30.0  # seconds between two lines
_SHOWN: set[str] = set()  # lines, which are not repeated


@contextlib.contextmanager
def show_progress(
    phase: str, total: int | None = None, unit: str = "items"
) -> Iterator[Callable[[int], object]]:
    """Says that a phase is going on, once it has taken a few seconds.

    On a terminal it is a bar with the items per second and the time left; elsewhere, a
    line at the start and one every half minute.

    Args:
        phase: What is going on, such as "loading runs/mine".
        total: Number of items, for a bar; None for a line alone.
        unit: What the items are.

    Yields:
        A function to call with the number of items that are done since its last call.
    """
    has_bar = total is not None and sys.stderr.isatty()
    line = threading.Timer(DELAY, show_note, [f"{phase} ..."])
    line.daemon = True  # it does not keep a process that ends
    start = shown = time.monotonic()
    options = {"delay": DELAY, "leave": False, "unit": f" {unit}"}
    bar, done = tqdm(total=total, desc=phase, disable=not has_bar, **options), 0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        bar.update(count)
        now = time.monotonic()
        if total and not has_bar and is_first() and now - shown > INTERVAL:
            shown, rate = now, done / (now - start)
            left = tqdm.format_interval((total - done) / rate) if rate else "?"
            text = f"{phase}: {done:,} done, {rate:,.0f} {unit}/s, {left} left"
            tqdm.write(text, file=sys.stderr)

    with bar:
        if not has_bar and is_first():
            line.start()
        try:
            yield advance
        finally:
            line.cancel()


def show_note(line: str) -> None:
    """Writes a line to stderr, once, in the first process."""
    if line not in _SHOWN and is_first():
        _SHOWN.add(line)
        tqdm.write(line, file=sys.stderr)
