"""Reports of runs whose files are not complete."""

import json

import pytest

from research.analysis.report import format_markdown, plot_loss, read_metrics

CONFIG = {"objective": {"name": "mlm"}, "steps": 4, "batch_size": 8, "evals": {}}


def test_a_run_that_was_killed_is_reported_up_to_its_last_complete_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.json").write_text('{"encoder": {"depth": 2, "width": 8}}')
    lines = b'{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo\xc3'
    (tmp_path / "metrics.jsonl").write_bytes(lines)
    assert "mlm: 2 of 4 steps of 8 rows" in format_markdown(tmp_path)


def test_the_best_step_is_between_the_first_and_the_last(tmp_path):
    evals = {"evals": {"dev": {"name": "sts"}}}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | evals))
    (tmp_path / "model.json").write_text('{"encoder": {"depth": 2, "width": 8}}')
    rows = [{"step": 1, "loss": 3.0}]
    scores = {0: 10.0, 1: 30.0, 2: 50.0, 3: 40.0}
    rows += [{"step": s, "eval/dev/main_score": scores[s]} for s in scores]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def read_table():
        lines = format_markdown(tmp_path).split("## dev\n\n")[1].splitlines()
        return [cell.strip() for line in lines for cell in line.strip("|").split("|")]

    assert read_table()[:3] == ["", "step 0", "step 3"]
    best = {"metric": "dev/main_score", "step": 2, "score": 50.0}
    (tmp_path / "best.json").write_text(json.dumps(best))
    assert read_table()[:4] == ["", "step 0", "step 2 (best)", "step 3"]
    assert read_table()[-4:] == ["main_score", "10.00", "50.00", "40.00"]


def test_the_pages_of_evals_follow_the_grid_and_the_speed_is_that_of_all_steps(
    tmp_path,
):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.json").write_text('{"encoder": {"depth": 2, "width": 8}}')
    rows = [
        {"step": s, "loss": 3.0, "tokens_per_second": 500 * s, "save_seconds": 2}
        for s in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "versions.json").write_text('{"jax": "9.9"}')
    (tmp_path / "evals").mkdir()
    for name in ("chunks", "grid"):
        (tmp_path / "evals" / f"{name}.md").write_text(f"# {name} of m\n\ntable\n")
    (tmp_path / "evals" / "grid.png").write_bytes(b"")
    text = format_markdown(tmp_path)
    grid = ["## grid of m", "![grid of m](evals/grid.png)"]
    parts = [*grid, "## chunks of m", "jax 9.9."]
    assert sorted(parts, key=text.index) == parts and "chunks.png" not in text
    assert "tokens per second, median | 1,000" in " ".join(text.split())
    assert "save seconds, sum | 6" in " ".join(text.split())


@pytest.mark.parametrize("lines", ["", '{"step": 0, "note": "from x"}\n', '{"step"'])
def test_a_run_without_a_logged_step_has_nothing_to_report(lines, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="nothing to report: no step has been logged"):
        read_metrics(tmp_path)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="it has no metrics.jsonl"):
        read_metrics(tmp_path)


def test_the_axis_of_scores_is_of_their_own_range(tmp_path, monkeypatch):
    rows = [{"step": 1, "loss": 2.0}]
    rows += [{"step": n, "eval/dev/main_score": 86 + n / 10} for n in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda *a, **k: pictures.append(a[0])
    )
    plot_loss(tmp_path, tmp_path / "curve.png")
    low, high = pictures[0].axes[1].get_ylim()
    assert 85 < low < 86 and 86.1 < high < 87
    # The mean over sizes is a curve of its own
    rows += [{"step": n, "eval/dev/size_mean": 60 + n} for n in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plot_loss(tmp_path, tmp_path / "curve.png")
    lines = {line.get_label(): line.get_ydata() for line in pictures[1].axes[1].lines}
    assert lines.keys() == {"dev", "dev/size_mean"}
    assert list(lines["dev/size_mean"]) == [60, 61]
