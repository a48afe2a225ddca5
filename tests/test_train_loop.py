import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from research.atomic_write import atomic_write
from research.train import loop
from research.train.experiment import Refresh

ROOT = Path(__file__).parents[1]
SPEED = {
    *("tokens_per_second", "steps_per_second", "data_wait", "padding"),
    *("compilations", "compile_seconds"),
    *("step_seconds", "save_seconds", "evaluation_seconds"),
}


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def numbers(workdir):
    """The rows without what depends on the clock or on where reports fall."""
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows(workdir)]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


class Killed(Exception):
    pass


def interrupt(experiment, workdir, step):
    """Runs until the batch of a step is asked for, and dies there."""

    class Dying(toy.Batches):
        def __call__(self, at):
            if at == step:
                raise Killed
            return super().__call__(at)

    with pytest.raises(Killed):
        loop.train(experiment._replace(batches=Dying()), workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on one device: its workdir and result."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(toy.experiment(6), workdir)


def test_a_run_ends_and_leaves_its_files(whole):
    workdir, result = whole
    assert result.finished and result.state.step == 6
    assert [row["step"] for row in rows(workdir)] == [1, 2, 3, 4, 5, 6]
    assert [row["source"] for row in rows(workdir)] == ["even", "odd"] * 3
    assert all(set(row) >= SPEED for row in rows(workdir)[1::2])
    assert result.metrics == rows(workdir)[-1]
    # Steps and checkpoints after the first ones compile nothing anew
    first, second, last = rows(workdir)[1::2]
    assert 1 <= first["compilations"] <= second["compilations"] == last["compilations"]
    assert last["save_seconds"] > 0 == first["save_seconds"]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "6"]
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["jax"] == jax.__version__ and "revision" in versions
    assert list((workdir / "tensorboard").iterdir())


def test_the_losses_of_sources_stand_apart(tmp_path, capfd):
    options = {"log_every": 4, "save_every": 0, "is_mixture": True}
    loop.train(toy.experiment(4, **options), tmp_path)
    logged = rows(tmp_path)
    for row in logged:
        names = [name for name in row if name.startswith("loss/")]
        assert names == [f"loss/{row['source']}"] and row[names[0]] == row["loss"]
    means = [
        f"{name} {np.mean([row['loss'] for row in logged[start::2]]):.4f}"
        for start, name in enumerate(("even", "odd"))
    ]
    assert f"({', '.join(means)})" in capfd.readouterr().err


@pytest.mark.parametrize("died_at", [1, 3, 5])
def test_a_resumed_run_is_bit_equal(whole, tmp_path, died_at):
    experiment = toy.experiment(6)
    interrupt(experiment, tmp_path, died_at)
    result = loop.train(experiment, tmp_path)
    assert result.finished
    equal(result.state, whole[1].state)
    assert numbers(tmp_path) == numbers(whole[0])


@pytest.mark.parametrize("devices", [4, 8])
def test_a_run_resumes_on_another_mesh(whole, tmp_path, devices):
    interrupt(toy.experiment(6), tmp_path, 3)
    result = loop.train(toy.experiment(6, devices), tmp_path)
    for ours, theirs in zip(rows(tmp_path), rows(whole[0]), strict=True):
        assert ours["source"] == theirs["source"]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-6)
    table = result.state.params["encoder"]["embed"]["token"]["embedding"]
    assert len(table.sharding.device_set) == devices


def test_a_damaged_newest_checkpoint_is_made_again(whole, tmp_path, capfd):
    experiment = toy.experiment(6)
    interrupt(experiment, tmp_path, 5)
    for path in (tmp_path / "checkpoints" / "4").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    equal(loop.train(experiment, tmp_path).state, whole[1].state)
    assert numbers(tmp_path) == numbers(whole[0])
    assert "checkpoint 4 cannot be read" in capfd.readouterr().err


def test_a_finished_run_stays(whole, tmp_path, capfd):
    loop.train(toy.experiment(6), tmp_path)
    before = numbers(tmp_path)
    capfd.readouterr()
    result = loop.train(toy.experiment(6), tmp_path)
    assert result.finished and numbers(tmp_path) == before
    assert "all its 6 steps were done before" in capfd.readouterr().err


def test_rows_beyond_the_checkpoint_and_torn_ones_are_dropped(whole, tmp_path):
    experiment = toy.experiment(6, log_every=1, save_every=4)
    interrupt(experiment, tmp_path, 5)
    assert [row["step"] for row in rows(tmp_path)][-1] == 5
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    loop.train(experiment, tmp_path)
    assert numbers(tmp_path) == numbers(whole[0])


class Broken(toy.Batches):
    """Has a score that is not a number in its fourth batch."""

    def __call__(self, step):
        batch = super().__call__(step)
        if step == 3:
            batch.labels.score[0] = np.nan
        return batch


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, log_every):
    experiment = toy.experiment(6, batches=Broken(), log_every=log_every)
    with pytest.raises(ValueError, match=r"not finite at step 4, on a batch of odd"):
        loop.train(experiment, tmp_path)
    assert saved_steps(tmp_path) == [2]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert np.isfinite([row["loss"] for row in rows(tmp_path)]).all()


def with_scores(**changes):
    def make_embedder(params, frozen):
        assert not frozen
        table = np.asarray(params["encoder"]["embed"]["token"]["embedding"])
        return lambda texts, role: table[: len(texts)]

    def evaluator(embed):
        vectors = embed(["a", "b"], "query")
        return {"main_score": vectors.mean(), "table": vectors.tolist(), "note": "x"}

    return toy.experiment(
        6, evaluators={"fake": evaluator}, make_embedder=make_embedder, **changes
    )


def test_evaluators_run_on_time_and_at_the_end(tmp_path, capfd):
    result = loop.train(with_scores(eval_every=4), tmp_path)
    found = {
        r["step"]: r["eval/fake/main_score"] for r in rows(tmp_path) if len(r) == 2
    }
    assert set(found) == {0, 4, 6}
    printed = capfd.readouterr().err
    before = ("", *(f" ({found[b] - found[a]:+.2f})" for a, b in ((0, 4), (4, 6))))
    for (step, score), change in zip(found.items(), before, strict=True):
        assert f"step {step}/6  fake: main_score {score:.2f}{change}\n" in printed
    assert result.evals["fake"]["main_score"] == pytest.approx(found[6])
    saved = json.loads((tmp_path / "evals" / "fake-6.json").read_text())
    assert saved["step"] == 6 and len(saved["table"]) == 2


def test_an_evaluator_that_cannot_score_does_not_end_the_run(tmp_path, capfd):
    def evaluator(embed):
        raise ValueError("no correlation")

    experiment = with_scores(eval_every=3)
    experiment = experiment._replace(
        evaluators={"broken": evaluator, **experiment.evaluators}
    )
    for _ in range(2):  # and again when it is resumed
        result = loop.train(experiment, tmp_path)
        assert result.finished and result.evals["broken"] == {"error": "no correlation"}
        assert "main_score" in result.evals["fake"]
        message = "evals.broken has no scores at step 6: no correlation"
        assert message in capfd.readouterr().err
    saved = json.loads((tmp_path / "evals" / "broken-6.json").read_text())
    assert saved == {"step": 6, "error": "no correlation"}


def test_a_resumed_run_has_every_evaluation_once(tmp_path):
    whole = tmp_path / "whole"
    loop.train(with_scores(eval_every=2), whole)
    interrupt(with_scores(eval_every=2), tmp_path, 5)
    loop.train(with_scores(eval_every=2), tmp_path)
    assert numbers(tmp_path) == numbers(whole)


def test_a_run_starts_from_given_parameters(tmp_path):
    table = np.full((toy.VOCAB, toy.WIDTH), 0.25, np.float32)

    def initialize(key):
        params, frozen = toy.objective().init(key)
        params["encoder"]["embed"]["token"]["embedding"] = table
        return params, frozen

    experiment = toy.experiment(1, tx=toy.adamw(1, learning_rate=0.0))
    state = loop.train(experiment._replace(initialize=initialize), tmp_path).state
    np.testing.assert_array_equal(
        state.params["encoder"]["embed"]["token"]["embedding"], table
    )


def test_no_right_to_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        loop.train(toy.experiment(), tmp_path / "file" / "run")


SCRIPT = """
import sys, time
import jax
jax.config.update("jax_platforms", "cpu")
sys.path[:0] = [{root!r}, {tests!r}]
import toy
from research.train import loop

class Slow(toy.Batches):
    def __call__(self, step):
        time.sleep(0.05)
        return super().__call__(step)

experiment = toy.experiment(100_000, batches=Slow(), log_every=1, save_every=100_000)
result = loop.train(experiment, sys.argv[1])
print(result.finished, int(result.state.step))
"""


def test_a_signal_saves_and_ends_well(tmp_path):
    script = SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    log = tmp_path / "metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    finished, step = out.split()
    assert finished == "False" and int(step) >= 3
    assert saved_steps(tmp_path)[-1] == int(step)
    assert rows(tmp_path)[-1]["step"] == int(step)
    assert f"step {step}/100000" in err


def refreshed(workdir, dies_at=(), **changes):
    """An experiment whose batches depend on what every third step has written.

    It dies where `dies_at` says: ("batch", step), or ("before" or "after", step) the
    file of a step is written.
    """
    folder = workdir / "mined"

    def die(*place):
        if place == dies_at:
            raise Killed

    def run(params, frozen, step):
        assert not frozen
        path = folder / f"{step}.npy"
        if not path.exists():
            die("before", step)
            table = params["encoder"]["embed"]["token"]["embedding"]
            with atomic_write(path) as draft:
                np.save(draft, np.asarray(table))
            die("after", step)
            yield f"wrote {step}"

    def clear():
        shutil.rmtree(folder, ignore_errors=True)

    class Mined(toy.Batches):
        def __call__(self, step):
            die("batch", step)
            batch = super().__call__(step)
            table = np.load(folder / f"{step // 3 * 3}.npy")
            batch.labels.score[:] = np.abs(table[step, : len(batch.labels.score)])
            return batch

    changes = {
        "refresh": Refresh(3, run, clear, lambda step: None),
        "batches": Mined(),
    } | changes
    return toy.experiment(7, **changes)


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """An uninterrupted run with a refresh: its workdir and result."""
    workdir = tmp_path_factory.mktemp("mined")
    return workdir, loop.train(refreshed(workdir), workdir)


def test_batches_wait_for_what_they_depend_on(mined):
    workdir, result = mined
    assert result.finished
    names = sorted(path.name for path in (workdir / "mined").iterdir())
    assert names == ["0.npy", "3.npy", "6.npy"]
    assert [r["step"] for r in rows(workdir) if r.get("refresh_seconds")] == [2, 4, 7]


@pytest.mark.parametrize(
    "place", [("batch", 1), ("batch", 5), ("before", 3), ("after", 6), ("before", 0)]
)
def test_a_run_with_a_refresh_is_bit_equal_after_a_kill(mined, tmp_path, place):
    # What an earlier run has left without a checkpoint does not count
    (tmp_path / "mined").mkdir()
    np.save(tmp_path / "mined" / "0.npy", np.zeros((toy.VOCAB, toy.WIDTH)))
    with pytest.raises(Killed):
        loop.train(refreshed(tmp_path, place), tmp_path)
    result = loop.train(refreshed(tmp_path), tmp_path)
    equal(result.state, mined[1].state)
    losses = [[r["loss"] for r in rows(w)] for w in (tmp_path, mined[0])]
    assert losses[0] == losses[1]
