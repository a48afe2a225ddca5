"""Hard negatives that a run mines anew every few steps, as files of its workdir."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.atomic_write import atomic_write


@dataclass(frozen=True)
class RefreshedNegatives:
    """The hard negatives of a source, mined by the checkpoint of every n-th step.

    The file NAME-STEP.npy holds those that the steps from STEP on draw: with these
    files, a batch is a function of its step.

    Attributes:
        folder: Folder of the files of a run; None for random negatives, which tell what
            a step costs.
        name: Name of the source.
        every: Interval in steps, from step 0.
        count: N, number of negatives per query.
    """

    folder: Path | None
    name: str
    every: int
    count: int

    def find_step(self, step: int) -> int:
        """The step whose checkpoint mined the negatives of a step."""
        return step // self.every * self.every

    def get_path(self, step: int | str) -> Path:
        """The file of what the checkpoint of a step mined, or of another array."""
        if self.folder is None:
            raise ValueError("only a run with a workdir keeps mined negatives")
        return self.folder / f"{self.name}-{step}.npy"

    def read(self, step: int, size: int) -> np.ndarray:
        """The negatives of all examples in a step.

        Args:
            step: The step of the batch.
            size: n, number of examples of the source.

        Returns:
            [n, N] int32 indices of texts of the source's table.

        Raises:
            ValueError: The file is missing or damaged.
        """
        first = self.find_step(step)
        path = self.get_path(first)
        try:
            negatives = np.load(path, mmap_mode="r")
            shape = negatives.shape
        except (OSError, ValueError, EOFError):
            shape = None
        if shape != (size, self.count):
            problem = "is missing" if not path.exists() else "is damaged"
            raise ValueError(
                f"{path} {problem}: it holds the negatives of the steps {first} to "
                f"{first + self.every - 1}, and only the checkpoint of step {first} can"
                " mine them again"
            )
        return negatives

    def write(self, step: int, negatives: np.ndarray) -> None:
        """Keeps the negatives [n, N] that the checkpoint of a step mined."""
        self.write_array(step, negatives.astype(np.int32))

    def clear(self) -> None:
        """Removes the files that an earlier run has left."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.npy"):
                path.unlink()

    def drop(self, step: int) -> None:
        """Removes what was mined for steps that a run from this step on does not need.

        The negatives of the step itself stay, and so do arrays of no step.
        """
        if self.folder is None or not self.folder.is_dir():
            return
        pattern = re.compile(rf"{re.escape(self.name)}-(\d+)(-scores|-counts)?\.npy")
        for path in self.folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match and int(match[1]) < self.find_step(step):
                path.unlink()

    def write_array(self, name: int | str, values: np.ndarray) -> None:
        """Keeps an array that later steps need, in the file NAME-name.npy."""
        with atomic_write(self.get_path(name)) as draft:
            np.save(draft, values)

    def read_arrays(self, *names: str) -> Iterator[np.ndarray]:
        """Yields arrays of `write_array`.

        Raises:
            ValueError: A file is missing or damaged.
        """
        for path in map(self.get_path, names):
            try:
                yield np.load(path)
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"{path}, which the next negatives depend on, cannot be read: "
                    f"{error}; without it the run has to start anew"
                ) from None
