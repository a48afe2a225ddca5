"""Command that writes a report of a run.

python -m launch.report --workdir=DIR
"""

from pathlib import Path

from launch import main as cli
from research.analysis import report
from research.analysis.courses import find_courses, plot_courses
from research.atomic_write import atomic_write

WORKDIR = cli.define_path("workdir", None, "The folder of a run.", required=True)


def main():
    """Writes evals/report.md and its pictures, and prints the report."""
    # Beside the grid, if launch.evaluate has written one.
    workdir = Path(WORKDIR.value)
    folder = workdir / "evals"
    with (
        atomic_write(folder / "curve.png") as picture,
        atomic_write(folder / "report.md") as page,
    ):
        report.plot_loss(workdir, picture)
        page.write_text(report.format_markdown(workdir))
    # Diagnostics by step, of a run that has evaluators for them.
    if courses := find_courses(report.read_metrics(workdir)):
        with atomic_write(folder / "diagnostics.png") as picture:
            plot_courses(workdir, courses, picture)
    print((folder / "report.md").read_text())
    return {"report": str(folder / "report.md")}


if __name__ == "__main__":
    cli.run(main)
