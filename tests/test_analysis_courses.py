import json

import numpy as np
from matplotlib.figure import Figure

from research.analysis.courses import (
    find_courses,
    format_course,
    plot_courses,
    read_depths,
)

METRICS = [
    {"step": 0, "eval/dev/main_score": 50.0, "eval/geo/rank": 3.0, "eval/geo/x": 1.0},
    {"step": 5, "loss": 1.0},
    {"step": 10, "eval/dev/main_score": 60.0, "eval/geo/rank": 9.0, "eval/geo/x": 0.5},
    {"step": 20, "eval/dev/main_score": 61.0, "eval/geo/rank": 4.0, "eval/geo/x": 0.2},
]


def write_depths(workdir):
    (workdir / "evals").mkdir()
    for step in (10, 0, 20):
        record = {"step": step, "rank": step, "by_depth": {"rank": [step, step + 1.0]}}
        (workdir / "evals" / f"geo-{step}.json").write_text(json.dumps(record))
    # Another evaluator, and one that could not score the model.
    (workdir / "evals" / "geo-b-20.json").write_text(json.dumps(record))
    (workdir / "evals" / "geo-30.json").write_text('{"step": 30, "error": "none"}')


def test_diagnostics_are_the_evaluators_without_a_main_score():
    courses = find_courses(METRICS)
    assert courses == {
        "geo": {"rank": {0: 3.0, 10: 9.0, 20: 4.0}, "x": {0: 1.0, 10: 0.5, 20: 0.2}}
    }
    rows = format_course(courses["geo"]).splitlines()
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells == ["rank", "3", "9", "4", "10"]


def test_measures_of_every_depth_are_read_in_the_order_of_steps(tmp_path):
    write_depths(tmp_path)
    steps, values = read_depths(tmp_path, "geo")["rank"]
    assert steps == [0, 10, 20]
    np.testing.assert_array_equal(values, [[0, 1], [10, 11], [20, 21]])
    assert read_depths(tmp_path, "dev") == {}


def test_the_picture_has_a_curve_or_a_map_for_each_measure(tmp_path, monkeypatch):
    write_depths(tmp_path)
    pictures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda picture, *_, **__: pictures.append(picture)
    )
    plot_courses(tmp_path, find_courses(METRICS), tmp_path / "x.png")
    depth_map, curve = pictures[0].axes[:2]
    assert depth_map.get_title() == "geo: rank" and curve.get_title() == "geo: x"
    np.testing.assert_array_equal(
        depth_map.images[0].get_array(), [[0, 10, 20], [1, 11, 21]]
    )
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), [1.0, 0.5, 0.2])
