import json

import numpy as np
import pytest

from research.analysis.diagnostics import redundancy
from research.analysis.diagnostics.redundancy import (
    choose_dims,
    list_redundancy,
    measure_redundancy,
)

VECTORS = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
VECTORS[:, 4:] *= 0.01  # all but the first four dimensions are small


def same_neighbor(embed):
    """Share of texts whose nearest other text is that of the full vectors."""
    x = embed(range(64), "document")
    nearest = [nearest_other(x), nearest_other(VECTORS)]
    return {"main_score": 100 * float(np.mean(nearest[0] == nearest[1]))}


def nearest_other(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.argmax(x @ x.T - 2 * np.eye(64), 1)


def test_a_task_keeps_its_score_in_the_dimensions_that_matter():
    calls = []

    def embed(texts, role):
        calls.append(role)
        return VECTORS

    record = measure_redundancy(embed, {"task": same_neighbor}, choose_dims(16))
    task = record["tasks"]["task"]
    assert record["dims"] == [2, 4, 8, 16] and calls == ["document"]
    assert task["leading"][-1] == task["random"][-1] == task["pca"][-1] == 100
    assert task["leading"][1] > 90 and task["pca"][1] > 80
    assert task["random"][0] < task["leading"][1] and task["leading"][0] < 80
    assert task["quarter"] == task["leading"][1]
    assert 0.1 < task["isoscore"] < 0.35
    assert json.loads(json.dumps(record)) == record
    header, *rows = list_redundancy(record)
    assert {len(row) for row in rows} == {len(header)} and rows[0][-2].endswith(" %")


def test_a_score_of_0_has_no_shares_and_isoscore_is_that_of_all_texts(monkeypatch):
    def embed(texts, role):
        return VECTORS[:32] if role == "query" else VECTORS * 0 + np.arange(16) * 1.0

    def score(embed):
        embed(range(64), "document"), embed(range(32), "query")
        return {"main_score": 0.0}

    monkeypatch.setattr(redundancy, "MAX_ISOSCORE_TEXTS", 48)
    record = measure_redundancy(embed, {"task": score}, choose_dims(16))
    task = record["tasks"]["task"]
    assert np.isnan(task["quarter"]) and task["leading"] == [0] * 4
    assert list_redundancy(record)[1][-2] == "nan %"
    # The first 48 texts have one vector, whose IsoScore is 0.
    assert task["isoscore"] > 0.02


@pytest.mark.parametrize(
    "width, dims", [(384, [2, 4, 8, 16, 32, 64, 96, 128, 256, 384]), (4, [1, 2, 4])]
)
def test_dimensions_to_compare(width, dims):
    assert choose_dims(width) == dims
