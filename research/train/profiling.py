"""Traces of training steps by JAX's profiler, to be read with xprof or TensorBoard."""

import re
from collections.abc import Callable
from pathlib import Path

import jax


def parse_profile_steps(text: str, steps: int) -> range:
    """The steps a, a + 1 ... b - 1 of the text "a:b", numbered from 1 as in the log.

    Args:
        text: The range, such as "10:13".
        steps: Number of steps of the run.

    Raises:
        ValueError: The text is no range, or the run has no such steps.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, end = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first < end <= steps + 1:
        raise ValueError(
            f"--profile_steps={text}: the range is a:b, for the steps a ... b-1, with "
            f"1 <= a < b <= {steps + 1} in this run of {steps} steps"
        )
    return range(first, end)


class StepTrace:
    """Traces some of a run's steps into a folder; no others are slowed down.

    Of several processes, the first one does.

    Args:
        folder: Folder of the trace.
        steps: Numbers of the steps to trace, in a row; empty for none.
        resumed: Number of steps that the run has made before.

    Raises:
        ValueError: The run has already made one of the steps.
    """

    def __init__(self, folder: Path, steps: range, resumed: int):
        if steps and steps[0] <= resumed:
            raise ValueError(
                f"--profile_steps={steps.start}:{steps.stop}: the run goes on from step"
                f" {resumed}, so the first step to profile is at least {resumed + 1}"
            )
        self._folder, self._steps = folder, steps
        self._is_active = False

    def surround(self, advance: Callable) -> Callable:
        """Makes `advance(state, batches, step)` trace the steps."""

        def advance_in_trace(state, batches, step):
            if step not in self._steps or jax.process_index():
                return advance(state, batches, step)
            # The device runs behind: earlier steps end before the trace, its last one
            # ends in it.
            if step == self._steps[0]:
                jax.block_until_ready(state)
                jax.profiler.start_trace(self._folder)
                self._is_active = True
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state = advance(state, batches, step)
            if step == self._steps[-1]:
                jax.block_until_ready(state)
                self.close()
            return state

        return advance_in_trace

    def close(self) -> None:
        """Writes the trace, even if the run ends before its last step."""
        if self._is_active:
            self._is_active = False
            jax.profiler.stop_trace()
