"""Report of a training run: loss curve, scores, pages of evals/, speed, versions."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.analysis.courses import find_courses, format_course
from research.atomic_write import read_json
from research.eval.figures import figure
from research.eval.tables import markdown_table
from research.train.checkpoints import read_best
from research.train.logging import read_rows

# Endings of the scores that are drawn: of the full size, and the mean over sizes.
CURVES = ("/main_score", "/size_mean")
# Metrics of speed, and what is reported of their values at all logged steps.
SPEED = {
    "tokens_per_second": statistics.median,
    "steps_per_second": statistics.median,
    "data_wait": statistics.median,
    "padding": statistics.median,
    "mfu": statistics.median,
    "compile_seconds": sum,
    "save_seconds": sum,
    "evaluation_seconds": sum,
    "peak_memory_mebibytes": max,
}
REDUCTIONS = {statistics.median: "median", sum: "sum", max: "largest"}


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads the records of a run's metrics.jsonl, without a line that was cut off.

    Raises:
        FileNotFoundError: The folder does not hold a run.
        ValueError: No step has been logged.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: it has no metrics.jsonl")
    # Of the values only the numbers; notes are text.
    rows = [
        {name: value for name, value in row.items() if not isinstance(value, str)}
        for row in read_rows(path)
    ]
    if not any("loss" in row for row in rows):
        raise ValueError(f"{workdir} has nothing to report: no step has been logged")
    return rows


def collect_values(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """{step: value} of all records that have the metric."""
    return {record["step"]: record[name] for record in metrics if name in record}


def format_markdown(workdir: Path) -> str:
    """The report: a summary, scores, the pages of evals/, speed and versions.

    Pictures are named relative to the workdir.

    Raises:
        FileNotFoundError: The folder does not hold a run.
        ValueError: No step has been logged, or a file of the run is damaged.
    """
    metrics = read_metrics(workdir)
    config = read_json(workdir / "config.json")
    card = read_json(workdir / "model.json")
    try:
        summary = _summarize_run(config, card["encoder"], metrics)
        evaluators = list(dict(config["evals"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{workdir} has a config.json or a model.json that is not that of a run"
        ) from None
    parts = [f"# {workdir.name}", summary, "![loss and score by step](evals/curve.png)"]
    # A table per evaluator, and the grid of sizes if there is one.
    best = read_best(workdir)
    for name in evaluators:
        parts += _tabulate_scores(metrics, name, best.step if best else None)
    courses = find_courses(metrics)
    for name, measures in courses.items():
        parts += [f"## {name}", format_course(measures)]
    if courses:
        parts.append("![diagnostics by step](evals/diagnostics.png)")
    # What launch.evaluate, launch.diagnose and launch.search wrote, the grid first.
    pages = (workdir / "evals").glob("*.md")
    for page in sorted(pages, key=lambda path: (path.stem != "grid", path.stem)):
        text = page.read_text(encoding="utf-8").strip()
        parts.append("#" + text)
        # The heading says what the picture beside the page shows
        if page.with_suffix(".png").exists():
            heading = text.partition("\n")[0].lstrip("# ")
            parts.append(f"![{heading}](evals/{page.stem}.png)")
    if system := _describe_system(workdir, metrics):
        parts += ["## Speed and versions", *system]
    return "\n\n".join(parts) + "\n"


def _summarize_run(
    config: Mapping[str, Any],
    encoder: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """A sentence about the training."""
    losses = collect_values(metrics, "loss")
    objective, unit = config["objective"]["name"], "rows"
    if "loss" in config:
        objective = f"{config['size_loss']['name']} over {config['loss']['name']}"
        unit = "pairs"
    first, last = min(losses), max(losses)
    return (
        f"{objective}: {last} of {config['steps']} steps of {config['batch_size']} "
        f"{unit}, an encoder of {encoder['depth']} blocks x {encoder['width']}, loss "
        f"{losses[first]:.2f} -> {losses[last]:.2f}."
    )


def _tabulate_scores(
    metrics: Sequence[Mapping[str, Any]], name: str, best: int | None
) -> list[str]:
    """Heading and table of an evaluator's scores at its first, best and last step."""
    # Metrics of an evaluator are logged as eval/NAME/SCORE.
    prefix = f"eval/{name}/"
    records = {r["step"]: r for r in metrics if prefix + "main_score" in r}
    if not records:
        return []
    steps = sorted({min(records), max(records), best} & records.keys())
    last = records[steps[-1]]
    rows = [
        [key.removeprefix(prefix), *(_format_score(records[s], key) for s in steps)]
        for key in last
        if key.startswith(prefix)
    ]
    header = [f"step {s}" + " (best)" * (s == best) for s in steps]
    return [f"## {name}", markdown_table(["", *header], rows)]


def _describe_system(workdir: Path, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the speed, and a sentence on the code and the libraries."""
    rows = []
    for name, reduce in SPEED.items():
        if values := list(collect_values(metrics, name).values()):
            value = reduce(values)
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            rows.append([f"{name.replace('_', ' ')}, {REDUCTIONS[reduce]}", text])
    versions = read_json(workdir / "versions.json", missing={})
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = [markdown_table(["", "all steps"], rows)] if rows else []
    return [*table, *([f"Code and libraries: {libraries}."] if versions else [])]


def _format_score(record: Mapping[str, Any], key: str) -> str:
    return f"{record[key]:.2f}" if key in record else ""


def plot_loss(workdir: Path, path: Path) -> None:
    """Plots the loss by step, and every evaluator's CURVES on a second axis."""
    metrics = read_metrics(workdir)
    losses = collect_values(metrics, "loss")
    names = {key for record in metrics for key in record if key.endswith(CURVES)}
    with figure(path, (7, 3.6)) as (picture, axes):
        # The loss at every logged step.
        style = {"color": "C0", "lw": 1, "label": "loss"}
        axes.plot(list(losses), list(losses.values()), **style)
        axes.set(xlabel="step", ylabel="loss", title=f"{workdir.name}: loss and scores")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if not names:
            return
        # Scores have their own axis at the right.
        score_axes = axes.twinx()
        for number, name in enumerate(sorted(names), 1):
            scores = collect_values(metrics, name)
            label = name.removeprefix("eval/").removesuffix("/main_score")
            style = {"marker": "o", "color": f"C{number}", "label": label}
            score_axes.plot(list(scores), list(scores.values()), **style)
        score_axes.set(ylabel="main score, %")
        # Below the lines of both axes, which it would hide
        picture.legend(loc="outside lower center", ncols=3)
