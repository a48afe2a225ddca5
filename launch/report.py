"""Command that writes a report of a run.

python -m launch.report --workdir=DIR
"""

from pathlib import Path

from launch import main as cli
from research.analysis import report
from research.atomic_write import atomic_write

WORKDIR = cli.define_path("workdir", None, "The folder of a run.", required=True)


def main():
    """Writes evals/report.md and evals/curve.png, and prints the report."""
    # Beside the grid, if launch.evaluate has written one.
    workdir = Path(WORKDIR.value)
    folder = workdir / "evals"
    with (
        atomic_write(folder / "curve.png") as picture,
        atomic_write(folder / "report.md") as page,
    ):
        report.plot_loss(workdir, picture)
        page.write_text(report.format_markdown(workdir))
    print((folder / "report.md").read_text())
    return {"report": str(folder / "report.md")}


if __name__ == "__main__":
    cli.run(main)
