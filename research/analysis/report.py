"""The story of a run in one page: its curve, its scores, its sizes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: it has no metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def collect_values(rows: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """step -> value of the rows that have it."""
    return {row["step"]: row[name] for row in rows if name in row}


def format_markdown(workdir: Path) -> str:
    """The report: what ran, before and after training, the sizes, and the files."""
    rows = read_metrics(workdir)
    config = json.loads((workdir / "config.json").read_text())
    model = json.loads((workdir / "model.json").read_text())
    losses = collect_values(rows, "loss")
    shape = model["encoder"]
    what, unit = config["objective"]["name"], "rows"
    if "loss" in config:
        what, unit = (
            f"{config['size_loss']['name']} over {config['loss']['name']}",
            "pairs",
        )
    lines = [
        f"# {workdir.name}",
        "",
        f"{what}: {max(losses)} of {config['steps']} steps of {config['batch_size']} "
        f"{unit}, an encoder of {shape['depth']} blocks x {shape['width']}, loss "
        f"{losses[min(losses)]:.2f} -> {losses[max(losses)]:.2f}.",
        "",
        "![loss and score by step](curve.png)",
        "",
    ]
    for name in config["evals"]:
        lines += _before_and_after(rows, name)
    grid = workdir / "evals" / "grid.md"
    if grid.exists():
        lines += ["#" + grid.read_text(), "![score by depth and width](grid.png)", ""]
    return "\n".join(lines)


def _before_and_after(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """A table of an evaluator's scores at its first and its last step."""
    prefix = f"eval/{name}/"
    evaluated = [row for row in rows if prefix + "main_score" in row]
    if not evaluated:
        return []
    first, last = evaluated[0], evaluated[-1]
    keys = [key for key in last if key.startswith(prefix)]
    lines = [
        f"## {name}",
        "",
        f"| | step {first['step']} | step {last['step']} |",
        "| --- | ---: | ---: |",
    ]
    for key in keys:
        title = key.removeprefix(prefix)
        lines.append(f"| {title} | {first[key]:.2f} | {last[key]:.2f} |")
    return [*lines, ""]


def plot_loss(workdir: Path, path: Path) -> None:
    """Draws the loss by step, and the main score of every evaluator beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(workdir)
    losses = collect_values(rows, "loss")
    names = sorted({key for row in rows for key in row if key.endswith("/main_score")})
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(list(losses), list(losses.values()), color="C0", lw=1)
    axes.set(xlabel="step", ylabel="loss", title=f"{workdir.name}: loss and scores")
    axes.grid(alpha=0.3)
    if names:
        right = axes.twinx()
        for number, name in enumerate(names, 1):
            found = collect_values(rows, name)
            label = name.split("/")[1]
            right.plot(
                list(found),
                list(found.values()),
                marker="o",
                color=f"C{number}",
                label=label,
            )
        right.set(ylabel="main score, %", ylim=(0, None))
        right.legend(loc="center right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
