"""The best checkpoint of a run and its early end, also after kills."""

import json

import jax.numpy as jnp
import pytest
import toy

from research.interop.load import find_workdir
from research.train import checkpoints, loop
from research.train.evaluations import (
    check_metric,
    count_since_best,
    find_best,
    format_scores,
    read_history,
)
from research.types import LossOutput, Objective

METRIC = "dev/main_score"
# Scores of the model at steps 0 ... 6
SCORES = (60.0, 70.0, 65.0, 68.0, 70.0, 71.5, 64.0)


class Killed(Exception):
    pass


class Batches(toy.Batches):
    """Dies when the batch of a step is asked for."""

    def __init__(self, killed_at=None):
        super().__init__()
        self.killed_at = killed_at

    def __call__(self, step):
        if step == self.killed_at:
            raise Killed
        return super().__call__(step)


def make_run(scores=SCORES, *, killed_at=None, dies_in=None, **changes):
    """A run whose only parameter is minus the step, so that scores are of the step."""

    def init(key):
        del key
        return {"embed": {"token": {"embedding": jnp.zeros((1, 1))}}}, {}

    def loss(params, frozen, batch, key):
        del frozen, batch, key
        return LossOutput(params["embed"]["token"]["embedding"].sum(), {})

    def measure(params, frozen):
        del frozen
        step = -round(float(params["embed"]["token"]["embedding"][0, 0]))
        if step == dies_in:
            raise Killed
        return {"main_score": scores[step], "text": "x"}

    tx = toy.adamw(6, learning_rate=1.0, schedule="constant")
    options = {"eval_every": 1, "save_every": 3, "keep": 1, "keep_best": METRIC}
    return toy.experiment(
        **{"objective": Objective(init, loss), "tx": tx, "measures": {"dev": measure}},
        batches=Batches(killed_at),
        **(options | changes),
    )


def read_run(workdir):
    """best.json, the steps with a checkpoint, and the scores in the log."""
    best = checkpoints.read_best(workdir)
    steps = sorted(checkpoints.list_steps(workdir / "checkpoints"))
    return best, steps, read_history(workdir, 100)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.train(make_run(), workdir)
    return workdir


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path, capfd):
    result = loop.train(make_run(), tmp_path)
    best, steps, history = read_run(tmp_path)
    assert best == result.best == (METRIC, 5, 71.5)
    assert steps == [5, 6] and len(history) == 7
    printed = capfd.readouterr().err
    assert "step 5/6  dev: main_score 71.50 (+1.50, best)\n" in printed
    assert "best dev/main_score: 71.50 at step 5" in printed


@pytest.mark.parametrize(
    "end",
    [{"killed_at": 2}, {"dies_in": 2}, {"dies_in": 5}],
    ids=["training", "worse", "better"],
)
def test_a_killed_run_ends_with_the_same_best(whole, tmp_path, end):
    with pytest.raises(Killed):
        loop.train(make_run(**end), tmp_path)
    # As if the record of a later evaluation outlived its checkpoint
    checkpoints.write_best(tmp_path, checkpoints.Best(METRIC, 6, 99.0))
    loop.train(make_run(), tmp_path)
    assert read_run(tmp_path) == read_run(whole)


@pytest.mark.parametrize(
    "end", [{}, {"killed_at": 2}, {"dies_in": 3}], ids=["none", "training", "last"]
)
def test_patience_ends_the_run_at_the_same_step(tmp_path, end, capfd):
    if end:
        with pytest.raises(Killed):
            loop.train(make_run(patience=2, **end), tmp_path)
    result = loop.train(make_run(patience=2), tmp_path)
    assert result.finished and result.state.step == 3
    assert read_run(tmp_path)[:2] == ((METRIC, 1, 70.0), [1, 3])
    # The same command trains no more, and says so
    capfd.readouterr()
    again = loop.train(make_run(patience=2, killed_at=3), tmp_path)
    assert again.finished and again.state.step == 3 and again.best == result.best
    printed = capfd.readouterr().err
    assert "ended early at step 3 of 6: no better dev/main_score in 2 eval" in printed
    # Without patience the rest is trained
    assert loop.train(make_run(), tmp_path).best.step == 5


def test_smaller_may_be_better_and_the_untrained_model_is_not_chosen(tmp_path, capfd):
    loop.train(make_run(keep_best="-dev/main_score", patience=3), tmp_path)
    best, steps, _ = read_run(tmp_path)
    assert best == ("-dev/main_score", 2, 65.0) and steps == [2, 5]
    printed = capfd.readouterr().err
    assert "no better than the untrained model (60.00)" in printed


def test_a_wrong_score_is_named_before_anything_is_saved(tmp_path):
    with pytest.raises(ValueError, match="'dev/ndcg'; .* are dev/main_score$"):
        loop.train(make_run(keep_best="dev/ndcg"), tmp_path)
    assert read_run(tmp_path)[1] == []


def test_an_evaluation_without_scores_may_still_have_the_metric():
    check_metric(METRIC, {"dev": {"error": "no correlation"}}, {})
    check_metric(METRIC, {"dev": {"main_score": float("nan")}}, {})
    check_metric("", {"dev": {}}, {})
    with pytest.raises(ValueError, match="keep_best is 'test/main_score'"):
        check_metric("test/main_score", {"dev": {"error": "x"}}, {})


def test_the_best_is_the_first_of_equals_and_has_a_checkpoint():
    history = {0: {METRIC: 1.0}, 2: {METRIC: 3.0}, 4: {}, 6: {METRIC: 3.0}}
    assert find_best(history, METRIC) == (METRIC, 2, 3.0)
    assert find_best(history, METRIC, {0, 6}) == (METRIC, 6, 3.0)
    assert find_best(history, METRIC, {4}) is None
    assert find_best(history, "dev/other") is None
    assert find_best(history, METRIC, {0}) is None  # the untrained model
    assert count_since_best(history, METRIC) == 1  # step 4 had no score


def test_lines_have_the_changes_since_the_last_evaluation():
    history = {
        0: {"a/main_score": 50.0, "b/main_score": 3.0},
        2: {"a/main_score": 51.25, "a/low": 1.0},
        4: {"a/main_score": 51.0, "a/low": 1.5, "b/main_score": 2.0},
    }
    first, second, third = (
        format_scores({s: history[s] for s in history if s <= step}, step, METRIC)
        for step, METRIC in ((0, ""), (2, "a/main_score"), (4, "-b/main_score"))
    )
    assert first == ["a: main_score 50.00", "b: main_score 3.00"]
    assert second == ["a: main_score 51.25 (+1.25, best)  low 1.00"]
    assert third == [
        "a: main_score 51.00 (-0.25)  low 1.50 (+0.50)",
        "b: main_score 2.00 (-1.00, best)",
    ]


def test_damaged_records_are_named(tmp_path):
    (tmp_path / "best.json").write_text(json.dumps({"step": "x", "metric": "m"}))
    with pytest.raises(ValueError, match=r"best\.json is not that of a run"):
        checkpoints.read_best(tmp_path)


def test_a_checkpoint_is_named_by_its_folder(tmp_path):
    assert find_workdir(tmp_path) is None
    (tmp_path / "model.json").write_text("{}")
    assert find_workdir(tmp_path) == tmp_path
    assert find_workdir(tmp_path / "checkpoints" / "300") == tmp_path
    assert find_workdir(tmp_path / "checkpoints" / "x") is None
