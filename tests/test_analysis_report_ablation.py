"""Reports of the folders of ablations."""

import json

from matplotlib.figure import Figure

from research.analysis.report_ablation import format_markdown, plot_losses, read_runs

TABLE = "# Six sizes\n\n|   | STS |\n|:--|--:|\n| a | 1.0 |\n\nOne seed.\n"


def write_run(workdir, name, losses):
    (workdir / name).mkdir()
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    lines = "\n".join(map(json.dumps, rows))
    (workdir / name / "metrics.jsonl").write_text(lines)


def test_an_ablation_is_its_table_and_its_runs(tmp_path):
    (tmp_path / "table.md").write_text(TABLE)
    # Models that are scored without training have no runs.
    assert format_markdown(tmp_path, read_runs(tmp_path)) == TABLE
    (tmp_path / "table.png").write_bytes(b"")
    write_run(tmp_path, "a-seed0", [3.0, 2.0])
    write_run(tmp_path, "b-seed0", [])
    text = format_markdown(tmp_path, read_runs(tmp_path))
    assert text.startswith(TABLE.rstrip())
    assert "![scores of the rows](table.png)" in text
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "seed0" in line
    ]
    assert cells == [["a-seed0", "2", "3.000", "2.000", ""], ["b-seed0", *[""] * 4]]


def test_many_runs_are_drawn_in_several_panels(tmp_path, monkeypatch):
    for number in range(9):
        write_run(tmp_path, f"run{number}", [3.0, number])
    write_run(tmp_path, "empty", [])
    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda *a, **_: pictures.append(a[0]))
    plot_losses(read_runs(tmp_path), tmp_path / "losses.png")
    panels = [[line.get_label() for line in a.lines] for a in pictures[0].axes]
    assert [len(names) for names in panels] == [5, 4]
    assert sum(panels, []) == [f"run{number}" for number in range(9)]
    assert list(pictures[0].axes[1].lines[0].get_ydata()) == [3.0, 5]
    assert all(step % 1 == 0 for step in pictures[0].axes[1].get_xticks())
