"""Records of the accelerator check: one JSON object a line, written as they come."""

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.atomic_write import to_json

MAX_ERROR = 600  # characters of an error's text


class Recorder:
    """Appends the results of one part to a file, and knows the part's deadline.

    Args:
        part: Name of the part.
        path: File of JSON lines; None records nothing.
        deadline: `time.time()` after which no measurement starts.
        note: Fields of every record, such as the device.
    """

    def __init__(
        self,
        part: str,
        path: Path | None,
        deadline: float = float("inf"),
        note: Mapping[str, Any] | None = None,
    ):
        self.part, self.path, self.deadline = part, path, deadline
        self.note = dict(note or {})
        self.rows = []
        self._lock = threading.Lock()  # measurements may run in several threads

    def write(self, name: str, **fields: Any) -> None:
        """Writes a record; it is on disk when this returns."""
        row = {"part": self.part, "name": name, **fields, **self.note}
        line = to_json(row)
        with self._lock:
            self.rows.append(row)
            print(line[:2_000], file=sys.stderr, flush=True)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(line + "\n")

    def measure_seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def attempt(
        self, name: str, measure: Callable[[], Mapping[str, Any]], *, needs: float = 5
    ) -> Mapping[str, Any] | None:
        """Runs a measurement and records its result, or why there is none.

        Args:
            name: Name of the measurement.
            measure: Function that returns the fields of the record.
            needs: Seconds without which the measurement is left out.

        Returns:
            The fields, or None if the measurement failed or was left out.
        """
        if self.measure_seconds_left() < needs:
            self.write(name, left_out=f"less than {needs:.0f} s were left")
            return None
        # Any error costs this measurement only: the others must still be made
        start = time.time()
        try:
            fields = dict(measure())
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"[:MAX_ERROR]
            self.write(name, error=text, wall_seconds=time.time() - start)
            return None
        self.write(name, **fields, wall_seconds=time.time() - start)
        return fields


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that is not complete is dropped."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows
