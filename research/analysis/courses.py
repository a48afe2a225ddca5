"""The course of diagnostics over a run: measures by step, and by step and depth.

Diagnostics are the evaluators without a main score, such as `geometry`; a run logs them
at every evaluation (`--config.evals`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.atomic_write import read_json
from research.eval.figures import figure
from research.eval.tables import markdown_table

# {evaluator: {measure: {step: value}}}
Courses = Mapping[str, Mapping[str, Mapping[int, float]]]
PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 3.6, 2.6, 3  # inches, panels in a row


def find_courses(metrics: Sequence[Mapping[str, Any]]) -> Courses:
    """The measures by step of the evaluators that log no main score.

    Args:
        metrics: Records of metrics.jsonl, in which scores are named eval/NAME/SCORE.
    """
    courses: dict[str, dict[str, dict[int, float]]] = {}
    for record in metrics:
        for key, value in record.items():
            kind, _, score = key.partition("/")
            name, _, measure = score.partition("/")
            if kind == "eval" and measure:
                steps = courses.setdefault(name, {}).setdefault(measure, {})
                steps[record["step"]] = value
    return {
        name: measures
        for name, measures in courses.items()
        if "main_score" not in measures
    }


def format_course(measures: Mapping[str, Mapping[int, float]]) -> str:
    """A table of the first, the largest and the last value of every measure.

    The step at which the representation rank is largest ends the first phase of
    contrastive training (Jung et al. 2024).
    """
    # A row per measure
    rows = []
    for name, values in measures.items():
        steps = sorted(values)
        peak = max(steps, key=values.get)
        cells = [f"{values[step]:.4g}" for step in (steps[0], peak, steps[-1])]
        rows.append([name.replace("_", " "), *cells, str(peak)])
    header = ["", "first", "largest", "last", "step of the largest"]
    return markdown_table(header, rows)


def read_depths(workdir: Path, name: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """{measure: (steps, values [steps, depths])} of an evaluator's files in evals/.

    Only evaluators that measure every depth have them.

    Args:
        workdir: Folder of the run.
        name: Name of the evaluator.
    """
    records = {}
    for path in (workdir / "evals").glob(f"{name}-*.json"):
        record = read_json(path)
        # Of "a-*.json", the files of an evaluator "a-b" are left out.
        step = record.get("step")
        if "by_depth" in record and path.name == f"{name}-{step}.json":
            records[step] = record["by_depth"]
    steps = sorted(records)
    names = records[steps[0]] if steps else ()
    return {
        measure: (steps, np.array([records[step][measure] for step in steps], float))
        for measure in names
    }


def plot_courses(workdir: Path, courses: Courses, path: Path) -> None:
    """Plots every measure by step; those of every depth as a map of step and depth.

    Args:
        workdir: Folder of the run.
        courses: The result of `find_courses`, not empty.
        path: PNG file.
    """
    # (title, {step: value} or steps and values by depth) of every panel
    panels: list[tuple[str, Any]] = []
    for name, measures in courses.items():
        maps = read_depths(workdir, name)
        for measure, values in measures.items():
            title = f"{name}: {measure.replace('_', ' ')}"
            panels.append((title, maps.get(measure, values)))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = columns * PANEL_WIDTH, 0.4 + rows * PANEL_HEIGHT
    layout = {"rows": rows, "columns": columns, "squeeze": False}
    with figure(path, size, title=f"{workdir.name}: diagnostics", **layout) as (
        picture,
        grid,
    ):
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, values) in zip(grid.flat, panels, strict=False):
            axes.set_title(title, fontsize="medium")
            axes.set(xlabel="step")
            # Steps and values by depth, or a curve of single values
            if isinstance(values, tuple):
                _draw_map(picture, axes, *values)
                continue
            steps = sorted(values)
            axes.plot(steps, [values[step] for step in steps], marker="o", ms=3)
            axes.grid(alpha=0.3)


def _draw_map(picture, axes, steps: Sequence[int], values: np.ndarray) -> None:
    """Draws values [steps, depths] as colors, with the evaluations evenly spaced."""
    image = axes.imshow(values.T, aspect="auto", origin="lower")
    stride = -(-len(steps) // 5)
    axes.set_xticks(range(0, len(steps), stride), map(str, steps[::stride]))
    axes.set(ylabel="depth")
    picture.colorbar(image, ax=axes)
