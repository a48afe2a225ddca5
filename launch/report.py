"""Command that writes a page about a run or an ablation, to read without network.

python -m launch.report --workdir=DIR
python -m launch.report --readme=FILE
"""

from functools import partial
from pathlib import Path

from launch import main as cli
from research.analysis import report, report_ablation
from research.analysis.courses import find_courses, plot_courses
from research.analysis.html_page import render_page
from research.analysis.readme_tables import fill_tables
from research.atomic_write import atomic_write
from research.eval.figures import write_picture

WORKDIR = cli.define_path("workdir", None, "The folder of a run, or of an ablation.")
README = cli.define_path(
    "readme",
    None,
    "Instead, a Markdown file whose tables are filled from the files of results that "
    "it names, as in <!-- results/NAME.md -->, up to <!-- end -->, and from headers of "
    "recipes, as in <!-- recipes: NAME, NAME -->.",
)


def main():
    """Writes report.html and its pictures, and prints the report without them."""
    if (WORKDIR.value is None) == (README.value is None):
        raise ValueError("give either --workdir=DIR or --readme=FILE")
    if README.value is not None:
        return _write_tables(Path(README.value))
    workdir = Path(WORKDIR.value).resolve()
    is_ablation = (workdir / "table.md").exists()
    text = _report_ablation(workdir) if is_ablation else _report_run(workdir)
    # The configs of the run, or of the ablation's runs
    configs = sorted(workdir.glob("*/config.json" if is_ablation else "config.json"))
    details = {
        " ".join(["Config", *path.relative_to(workdir).parts[:-1]]): path.read_text()
        for path in configs
    }
    if is_ablation and (workdir / "manifest.json").exists():
        details["Manifest"] = (workdir / "manifest.json").read_text()
    page = workdir / "report.html"
    with atomic_write(page) as draft:
        draft.write_text(render_page(text, workdir, details), encoding="utf-8")
    parts = text.split("\n\n")
    print("\n\n".join(part for part in parts if not part.startswith("![")))
    return {"report": str(page)}


def _write_tables(readme: Path) -> dict[str, str]:
    """Writes the README with its tables as files and headers have them."""
    text = fill_tables(readme)
    with atomic_write(readme) as draft:
        draft.write_text(text, encoding="utf-8")
    return {"readme": str(readme)}


def _report_run(workdir: Path) -> str:
    """Draws the pictures of a run, in evals/, and returns its report."""
    text = report.format_markdown(workdir)
    folder = workdir / "evals"
    write_picture(folder / "curve.png", partial(report.plot_loss, workdir))
    # Diagnostics by step, of a run that has evaluators for them.
    if courses := find_courses(report.read_metrics(workdir)):
        plot = partial(plot_courses, workdir, courses)
        write_picture(folder / "diagnostics.png", plot)
    return text


def _report_ablation(workdir: Path) -> str:
    """Draws the losses of an ablation's runs, and returns its report."""
    runs = report_ablation.read_runs(workdir)
    if any(runs.values()):
        plot = partial(report_ablation.plot_losses, runs)
        write_picture(workdir / "losses.png", plot)
    return report_ablation.format_markdown(workdir, runs)


if __name__ == "__main__":
    cli.run(main)
