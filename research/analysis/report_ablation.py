"""Report of an ablation's folder: its table and plot, and the losses of its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.analysis.report import collect_values, read_metrics
from research.eval.figures import figure, split_lines
from research.eval.tables import markdown_table

# {name of a run: records of its metrics.jsonl}
RunMetrics = Mapping[str, Sequence[Mapping[str, Any]]]
PANEL_WIDTH, PANEL_HEIGHT = 6.4, 3.6  # inches


def read_runs(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """The metrics of an ablation's runs; [] of a run that has not logged a step."""
    runs = {}
    for path in sorted(workdir.glob("*/metrics.jsonl")):
        try:
            runs[path.parent.name] = read_metrics(path.parent)
        except ValueError:  # it failed, or has only begun
            runs[path.parent.name] = []
    return runs


def format_markdown(workdir: Path, runs: RunMetrics) -> str:
    """The report: the table, its plot and, of trained models, a line per run.

    Args:
        workdir: Folder of an ablation that has a table.md.
        runs: The result of `read_runs`.
    """
    parts = [(workdir / "table.md").read_text(encoding="utf-8").strip()]
    # An ablation that was stopped while it was drawn has only the table
    if (workdir / "table.png").exists():
        parts.append("![scores of the rows](table.png)")
    if any(runs.values()):
        parts += ["## Runs", _tabulate_runs(runs), "![loss by step](losses.png)"]
    return "\n\n".join(parts) + "\n"


def _tabulate_runs(runs: RunMetrics) -> str:
    """A table of the last step, the losses and the speed of every run."""
    rows = []
    for name, metrics in runs.items():
        losses = collect_values(metrics, "loss")
        speeds = collect_values(metrics, "tokens_per_second")
        # A run that has not logged a step has empty cells.
        cells = [""] * 3
        if losses:
            first, last = min(losses), max(losses)
            cells = [str(last), f"{losses[first]:.3f}", f"{losses[last]:.3f}"]
        rows.append([name, *cells, f"{max(speeds.values()):,.0f}" if speeds else ""])
    header = ["run", "steps", "first loss", "last loss", "tokens/s, largest"]
    return markdown_table(header, rows)


def plot_losses(runs: RunMetrics, path: Path) -> None:
    """Plots the loss of every run by step, with a few runs in each panel."""
    panels = split_lines([name for name, metrics in runs.items() if metrics])
    size = PANEL_WIDTH, PANEL_HEIGHT * len(panels)
    layout = {"rows": len(panels), "squeeze": False, "sharex": True, "sharey": True}
    with figure(path, size, title="training loss", **layout) as (_, grid):
        for axes, names in zip(grid.flat, panels, strict=True):
            # A line for each run, as it was logged
            for name in names:
                losses = collect_values(runs[name], "loss")
                axes.plot(list(losses), list(losses.values()), lw=1, label=name)
            axes.set(ylabel="loss")
            axes.grid(alpha=0.3)
            # Beside the lines, which it would hide
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
        grid.flat[-1].set(xlabel="step")
        # Steps are whole numbers; all panels share their axis
        grid.flat[-1].xaxis.get_major_locator().set_params(integer=True)
