"""Evaluators of biases, for training and for commands, on embedders that are known."""

import json

import numpy as np
import pytest
from test_analysis_diagnostics import collapsing, weighted
from test_eval_bias_documents import corpus

from research.config_sections import build_call, parse_call
from research.eval.evaluators import EVALS


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(corpus(300, 7)))
    return path


def build(text):
    return build_call(EVALS, parse_call(text))


def test_positional_bias_is_the_ratio_of_changes(texts, capsys):
    evaluate = build(f"positional_bias(data={str(texts)!r}, documents=10, words=40)")
    even = evaluate(weighted(lambda place, number: 1.0))
    assert "change nothing" not in capsys.readouterr().err
    first = evaluate(weighted(lambda place, number: float(place == 0)))
    assert "edits at the end change nothing: texts of 40" in capsys.readouterr().err
    assert list(first) == ["start_over_end_insert", "start_over_end_remove"]
    assert min(first.values()) > 1e6
    assert even["start_over_end_insert"] == pytest.approx(1)


def test_length_collapse_is_the_rise_of_cosines(texts):
    evaluate = build(
        f"length_collapse(data={str(texts)!r}, documents=12, words=(4, 20))"
    )
    scores = evaluate(lambda texts, role: collapsing(texts, role)[:, 1])
    expected = {"cosine@4": 0.75, "cosine@20": 0.95, "collapse": 0.2}
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize("name", ["length_collapse", "positional_bias"])
def test_numbers_that_cannot_be_are_refused_before_anything_is_embedded(texts, name):
    with pytest.raises(ValueError, match="5 documents are too few: 10 or more"):
        build(f"{name}(data={str(texts)!r}, documents=5)")
    words = "-5" if name == "positional_bias" else "(-5, 16)"
    with pytest.raises(ValueError, match=f"{name}'s words is .*; it should be above 0"):
        build(f"{name}(data={str(texts)!r}, words={words})")


def test_mexa_of_files_by_language(tmp_path):
    for language, order in (("deu", [0, 1, 2]), ("fra", [0, 2, 1])):
        rows = [{"sentence1": f"{i}", "sentence2": f"{order[i]}"} for i in range(3)]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{language}-eng.jsonl").write_text(lines + "\n")
    vectors = np.eye(3)
    evaluate = build(f"mexa(data={str(tmp_path / '*.jsonl')!r})")
    scores = evaluate(lambda texts, role: vectors[[int(text) for text in texts]])
    assert scores["deu-eng"] == 100 and scores["fra-eng"] == pytest.approx(100 / 3)
    assert scores["main_score"] == pytest.approx(200 / 3)
    for folder in ("news", "talks"):
        (tmp_path / folder).mkdir()
        lines = (tmp_path / "deu-eng.jsonl").read_text()
        (tmp_path / folder / "deu-eng.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="have the same name 'deu-eng'"):
        build(f"mexa(data={str(tmp_path / '*' / 'deu-*.jsonl')!r})")
    with pytest.raises(ValueError, match="mexa of 1 sentences is undefined"):
        build(f"mexa(data={str(tmp_path / '*.jsonl')!r}, sentences=1)")
