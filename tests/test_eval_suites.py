"""Suites: which tasks there are, their means, their ranks; each text embedded once."""

import json

import numpy as np
import pytest

from research.eval.suites import table
from research.eval.suites.tasks import cache_vectors, read_suite, score_suite

ROWS = {
    "sts/test.jsonl": {"sentence1": "a", "sentence2": "b", "score": 1},
    "pairs/test.jsonl": {"sentence1": "a", "sentence2": "b", "label": 1},
    "languages/de-en.jsonl": {"sentence1": "a", "sentence2": "b"},
    "languages/fr-en.jsonl": {"sentence1": "a", "sentence2": "b"},
    "classes/train.jsonl": {"text": "a", "label": "x"},
    "classes/test.jsonl": {"text": "a", "label": "x"},
    "tags/train.jsonl": {"text": "a", "labels": ["x"]},
    "tags/test.jsonl": {"text": "a", "labels": ["x"]},
    "clusters/test.jsonl": {"text": "a", "label": "x"},
    "ranks.jsonl": {"query": "a", "positive": ["b"], "negative": ["c"]},
    "summaries/test.jsonl": {
        **{"text": "a", "human_summaries": ["b"]},
        **{"machine_summaries": ["c"], "relevance": [1]},
    },
    "search/corpus.jsonl": {"_id": "1", "text": "a"},
    "search/queries.jsonl": {"_id": "q", "text": "a"},
    "search/qrels/dev.tsv": None,
    "other/test.jsonl": {"anchor": "a"},
}


@pytest.fixture
def folder(tmp_path):
    for name, row in ROWS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("q\t1\t1\n" if row is None else json.dumps(row) + "\n")
    return tmp_path


def test_the_tasks_of_a_folder_are_told_by_their_files(folder):
    tasks, unknown = read_suite(folder)
    assert {task.name: task.task for task in tasks} == {
        "classes": "classification",
        "clusters": "clustering",
        "languages": "bitext_mining",
        "pairs": "pair_classification",
        "ranks": "reranking",
        "search": "retrieval",
        "sts": "sts",
        "summaries": "summarization",
        "tags": "multilabel",
    }
    assert unknown == ["other"]
    (search,) = (task for task in tasks if task.name == "search")
    assert search.arguments["split"] == "dev" and search.type == "Retrieval"


def write_suite(path, **tasks):
    path.write_text(json.dumps(tasks))
    return path


def test_the_paths_of_a_suite_file_are_relative_to_it(folder):
    fields = {"task": "retrieval", "data": "search", "metrics": ["map@5"]}
    path = write_suite(folder / "suite.json", mine=fields)
    (task,), unknown = read_suite(path)
    assert task.arguments == {"data": str(folder / "search"), "metrics": ("map@5",)}
    assert (task.name, task.type, unknown) == ("mine", "Retrieval", [])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data": "sts"}, 'mine should be an object with "task" and "data"'),
        ({"task": "nli", "data": "sts"}, "mine: task is 'nli'; allowed: bitext_mining"),
        ({"task": "sts", "data": "sts", "fold": 1}, "mine: sts has no argument fold"),
        ({"task": "sts", "data": "sts", "samples": "x"}, "sts's samples is 'x'"),
        ({"task": "sts", "data": "none.jsonl"}, "there is no file .*none.jsonl"),
    ],
)
def test_a_wrong_suite_is_refused_before_anything_is_embedded(folder, fields, message):
    path = write_suite(folder / "suite.json", mine=fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        for task in read_suite(path)[0]:
            task.build("cosine")


def test_files_that_are_no_task_are_named_and_hidden_ones_passed_over(folder):
    (folder / "broken.jsonl").write_text("")
    (folder / "suite.json").write_text(json.dumps({"a": 1}, indent=2))
    (folder / "README.md").write_text("# a")
    (folder / ".sts.jsonl").write_text("{}")
    (folder / "none" / "qrels").mkdir(parents=True)
    (folder / "none" / "qrels" / ".DS_Store").write_text("")
    tasks, unknown = read_suite(folder)
    assert len(tasks) == 9
    assert [name.split()[0] for name in unknown] == ["broken", "none", "other", "suite"]
    assert "broken.jsonl is empty" in unknown[0] and "is not JSON" in unknown[-1]


def test_each_task_of_a_folder_has_a_name_of_its_own(tmp_path):
    row = json.dumps(ROWS["sts/test.jsonl"])
    for name in ("sts.en.jsonl", "sts.de.jsonl"):
        (tmp_path / name).write_text(row)
    assert [task.name for task in read_suite(tmp_path)[0]] == ["sts.de", "sts.en"]
    (tmp_path / "sts.en").mkdir()
    (tmp_path / "sts.en" / "test.jsonl").write_text(row)
    with pytest.raises(ValueError, match="two tasks 'sts.en': rename sts.en.jsonl"):
        read_suite(tmp_path)


def test_a_folder_without_a_task_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="no task that is known .* found notes"):
        read_suite(tmp_path)


def test_every_text_is_embedded_once_for_each_prompt():
    calls = []

    def embed(texts, role):
        calls.append((list(texts), role))
        return np.array([[len(text), len(role)] for text in texts], np.float32)

    once = cache_vectors(embed, by_role=False)
    np.testing.assert_array_equal(once(["a", "bb", "a"], "query")[:, 0], [1, 2, 1])
    np.testing.assert_array_equal(once(["ccc", "bb"], "document")[:, 0], [3, 2])
    assert calls == [(["a", "bb"], "query"), (["ccc"], "document")]
    calls.clear()
    by_role = cache_vectors(embed, by_role=True)
    for role in ("query", "document", "query"):
        np.testing.assert_array_equal(by_role(["a"], role), [[1, len(role)]])
    assert len(calls) == 2


def test_a_task_that_fails_stops_no_other():
    def fail(embed):
        raise ValueError("the 3 predicted scores are all equal")

    reports = []
    evaluators = {"bad": fail, "good": lambda embed: {"main_score": embed}}
    results = score_suite(evaluators, 50.0, lambda *report: reports.append(report[:2]))
    assert results["good"] == {"main_score": 50.0}
    assert results["bad"] == {"error": "the 3 predicted scores are all equal"}
    assert [name for name, _ in reports] == ["bad", "good"]


THREE = table.SuiteScores(
    ["a", "b", "c"],
    {"first": "STS", "second": "STS", "third": "Retrieval"},
    100 * np.array([[0.9, 0.5, 0.7], [0.8, 0.6, 0.7], [0.7, 0.6, 0.9]]),
    {"b": {"first": 0.02, "second": 0.03}, "c": {"third": 1.0}},
)


def test_borda_ranks_are_those_of_mteb():
    points, ranks = table.rank_by_borda(THREE.scores)
    np.testing.assert_allclose(points, [2.5, 3, 3.5])
    np.testing.assert_array_equal(ranks, [3, 2, 1])
    # A model that lacks a task has no points for it.
    points, ranks = table.rank_by_borda(np.array([[np.nan, 1.0], [5.0, 0.0]]))
    np.testing.assert_allclose(points, [1, 1])
    np.testing.assert_array_equal(ranks, [1, 1])


def test_the_table_has_means_ranks_and_marks():
    text = table.format_markdown(THREE, "Suite")
    rows = {
        cells[1]: cells[2:-1]
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) > 2
    }
    assert rows["first"] == ["STS", "90.00", "80.00*", "70.00"]
    assert rows["second"] == ["STS", "50.00", "60.00", "60.00"]  # 0.03 x 2 is 0.06
    assert rows["mean of STS"] == ["", "70.00", "70.00", "65.00"]
    assert rows["mean over tasks"] == ["", "70.00", "70.00", "73.33"]
    assert rows["mean over types"] == ["", "70.00", "70.00", "77.50"]
    assert rows["Borda rank"] == [
        "",
        "3 (2.5 points)",
        "2 (3 points)",
        "1 (3.5 points)",
    ]
    record = table.to_record(THREE, 2)
    assert record["types"] == pytest.approx({"STS": 65, "Retrieval": 90})
    assert record["borda_rank"] == 1 and record["p"] == {"third": 1.0}
    record = table.to_record(THREE, 1)  # two models are compared with the first one
    assert record["p"] == {"first": 0.02, "second": 0.03}
    assert record["p_bonferroni"] == {"first": 0.04, "second": 0.06}
    assert "over pairs, times 2 other models." in text


def test_a_failed_task_leaves_no_mean(tmp_path):
    failed = table.SuiteScores(
        ["a"], {"x": "STS", "y": "STS"}, np.array([[50, np.nan]])
    )
    text = table.format_markdown(failed, "Suite")
    assert text.count("failed") == 4 and "Borda" not in text
    picture = table.plot_suite(failed, "Suite", tmp_path / "suite.png")
    (axes,) = picture.axes
    assert [bar.get_width() for bar in axes.patches] == [50, 0]
