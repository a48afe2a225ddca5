"""Plots of ablations: panels, intervals, and the names of their axes."""

import numpy as np
from matplotlib.figure import Figure

from research.analysis.ablation import Ablation
from research.analysis.ablation_plot import plot_ablation


def draw(monkeypatch, rows, columns, records, path):
    """The figure of rows without training."""
    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda *a, **_: pictures.append(a[0]))
    options = {"seeds": (0,), "evals": {"dev": None}}
    ablation = Ablation(
        title="t",
        rows={row: f"model={row}" for row in rows},
        columns=columns,
        eval_settings={"dev": [{"name": "sts"}, ""]},
        **options,
    )
    plot_ablation(ablation, records, path)
    return pictures[0].axes


def make_record(row, column, mean, spread=None, low=None, high=None):
    names = ("row", "column", "mean", "spread", "low", "high", "paper")
    return dict(zip(names, (row, column, mean, spread, low, high, None), strict=True))


def test_more_than_eight_rows_are_several_panels(tmp_path, monkeypatch):
    rows = [f"row {number}" for number in range(9)]
    columns = {f"{n} tokens": {"max_length": n} for n in (8, 16)}
    records = [
        make_record(row, column, 10.0 * number, spread=1.5)
        for number, row in enumerate(rows)
        for column in columns
    ]
    axes = draw(monkeypatch, rows, columns, records, tmp_path / "x.png")
    labels = [panel.get_legend_handles_labels()[1] for panel in axes]
    assert labels == [rows[:5], rows[5:]]
    line, _, (bars,) = axes[1].containers[0]
    assert list(line.get_ydata()) == [50, 50]
    np.testing.assert_allclose(
        [s[:, 1] for s in bars.get_segments()], [[48.5, 51.5]] * 2
    )
    assert axes[0].get_ylabel() == "Spearman's correlation, %"
    assert axes[1].get_xlabel() == "maximum length, tokens"


def test_single_columns_have_points_with_intervals(tmp_path, monkeypatch):
    columns = {"STS": {"panel": "STS"}, "other": {"panel": "other"}}
    records = [
        make_record("a", "STS", 40.0, low=35.0, high=42.0),
        make_record("a", "other", None),
        make_record("b", "STS", 30.0, low=29.0, high=31.0),
        make_record("b", "other", 1.0),
    ]
    axes = draw(monkeypatch, ["a", "b"], columns, records, tmp_path / "x.png")
    assert [panel.get_title() for panel in axes] == ["STS", "other"]
    points, _, (bars,) = axes[0].containers[0]
    assert list(points.get_xdata()) == [40, 30]
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends == [[35, 42], [29, 31]]
    # The first row is at the top.
    low, high = axes[0].get_ylim()
    assert low > high
