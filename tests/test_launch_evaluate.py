"""launch.evaluate on several tasks and against other models."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import pytrec_eval
from absl import flags

from launch import evaluate_mteb
from launch.bench.suite import take_main_scores
from launch.evaluate_embedders import build_for_model
from launch.evaluate_suite import compare_tasks
from research.eval.tasks.retrieval import ranking
from research.interop.sentence_transformers.write import export
from research.types import ItemValues, TaskScores
from tests.tiny_models import TEXTS, make_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny models, and a folder with an STS file and a BEIR folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    export(make_model(), folder / "one")
    other = make_model()
    params = jax.tree.map(lambda x: x + 0.1 * (x - x.mean()) ** 2, other.params)
    export(other._replace(params=params), folder / "two")
    data = folder / "data"
    (data / "search" / "qrels").mkdir(parents=True)
    pairs = [
        {"sentence1": a, "sentence2": b, "score": (i * j) % 7 / 2}
        for i, a in enumerate(TEXTS)
        for j, b in enumerate(TEXTS)
    ]
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    queries = [{"_id": f"q{i}", "text": text[:5]} for i, text in enumerate(TEXTS)]
    for name, rows in (
        ("pairs.jsonl", pairs),
        ("search/corpus.jsonl", corpus),
        ("search/queries.jsonl", queries),
    ):
        (data / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    lines = [f"q{i}\td{i}\t1\n" for i in range(len(TEXTS))]
    (data / "search" / "qrels" / "test.tsv").write_text("".join(lines))
    return folder


def evaluate(folder, *flags, model="one"):
    """The JSON and the messages of a command."""
    command = (sys.executable, "-m", "launch.evaluate", f"--model={folder / model}")
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        (*command, *flags), cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_models_are_compared_and_what_single_items_score_is_written(folder, tmp_path):
    data = f"--data={folder / 'data' / 'search'}"
    flags = ("--task=retrieval", data, f"--scores={tmp_path / 'one.tsv'}")
    result, text = evaluate(
        *(folder, *flags, f"--run={tmp_path / 'one.trec'}"),
        *(f"--against={folder / 'two'}", f"--against={folder / 'one'}"),
    )
    other, same = result["against"]
    assert other["difference"] == pytest.approx(
        result["main_score"] - other["main_score"]
    )
    assert same["difference"] == 0
    p_values = {name: p for name, p in same.items() if name.startswith("p_")}
    assert {"p_bonferroni", "p_holm", "p_fdr"} < set(p_values)
    assert set(p_values.values()) == {1}
    assert "95 % interval" in text and str(folder / "two") in text
    # The run gives trec_eval the scores of the file.
    run = pytrec_eval.parse_run((tmp_path / "one.trec").open())
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(len(TEXTS))}
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    lines = (tmp_path / "one.tsv").read_text().splitlines()
    assert lines[0] == "id\tscore"
    for name, score in (line.split("\t") for line in lines[1:]):
        assert float(score) == pytest.approx(100 * judged[name]["ndcg_cut_10"])
    # The file stands for the model.
    flags = ("--task=retrieval", data, f"--against={tmp_path / 'one.tsv'}")
    result, _ = evaluate(folder, *flags, model="two")
    (record,) = result["against"]
    assert record["difference"] == pytest.approx(-other["difference"])


def test_a_model_without_a_similarity_of_the_task_is_named():
    def build(similarity):
        return ranking({"d": "d"}, {"q": "q"}, {}, similarity=similarity)

    assert build_for_model(build, "dot", "two")
    message = (
        "'euclidean'; allowed: cosine, dot.*; two is meant for euclidean: give --sim"
    )
    with pytest.raises(ValueError, match=message):
        build_for_model(build, "euclidean", "two")


def test_tasks_of_other_items_or_without_a_score_have_no_p(capsys):
    def score(names):
        values = np.ones(len(names))
        return TaskScores({"main_score": 1.0}, ItemValues(names, (values,), np.mean))

    ours = {"same": score("xy"), "other": score("xy"), "bad": {"error": "no score"}}
    ours["whole"] = TaskScores({"main_score": 1.0}, None)
    results = {"one": ours, "two": ours | {"other": score("xyz")}}
    assert compare_tasks(results, ["one", "two"]) == {"two": {"same": 1.0}}
    message = "other has no p: the models have scores of 2 and 3 items, which are not"
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="bad: no score"):
        take_main_scores(ours)
    del ours["bad"]
    assert take_main_scores(ours) == dict.fromkeys(ours, 1.0)


def test_two_tasks_of_one_name_are_not_given_to_mteb(monkeypatch, tmp_path):
    flags.FLAGS.mark_as_parsed()  # without the checks of required ones
    task = SimpleNamespace(metadata=SimpleNamespace(name="STS12"))
    monkeypatch.setattr(evaluate_mteb, "check_mteb", lambda: None)
    monkeypatch.setattr(evaluate_mteb, "find_mteb_tasks", lambda *_: [task, task])
    with pytest.raises(ValueError, match="two tasks have the name STS12"):
        evaluate_mteb.evaluate_mteb(["STS12"], None, tmp_path)
    monkeypatch.setattr(evaluate_mteb, "find_mteb_tasks", lambda *_: [])
    with pytest.raises(ValueError, match="--task=mteb needs --tasks, such as"):
        evaluate_mteb.evaluate_mteb([], None, tmp_path)


def test_a_suite_and_its_tasks_in_mteb_have_the_same_scores(folder, tmp_path):
    pytest.importorskip("mteb")
    flags = (f"--data={folder / 'data'}", f"--output={tmp_path}")
    result, text = evaluate(
        folder, "--task=suite", *flags, f"--against={folder / 'two'}"
    )
    scores = {name: task["main_score"] for name, task in result["tasks"].items()}
    assert set(scores) == {"pairs", "search"} == set(result["against"][0]["p"])
    assert result["types"] == {"STS": scores["pairs"], "Retrieval": scores["search"]}
    # A point for each task on which a model is better, half a one for a tie.
    other = {k: task["main_score"] for k, task in result["against"][0]["tasks"].items()}
    points = sum(float(np.sign(scores[k] - other[k]) + 1) / 2 for k in scores)
    assert result["borda_points"] == points
    assert result["against"][0]["borda_points"] == 2 - points
    assert result["borda_rank"] == (1 if points >= 1 else 2)
    table = (tmp_path / "suite.md").read_text()
    assert "mean over types" in table and table.strip() in text
    assert json.loads((tmp_path / "suite.json").read_text()) == result
    # The same files through mteb, whose scores have six digits.
    by_mteb, _ = evaluate(folder, "--task=mteb", "--tasks=", *flags, "--depth=1")
    again, _ = evaluate(folder, "--task=mteb", *flags)
    assert again["tasks"] == pytest.approx(scores, abs=5e-3)
    assert again["revision"] == by_mteb["revision"] and by_mteb["tasks"] != scores
    results = tmp_path / "mteb" / "results" / "embax__one" / again["revision"]
    for path in (results, results / "experiments" / "depth_1"):
        assert (path / "search.json").exists() and (path / "model_meta.json").exists()
