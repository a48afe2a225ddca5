import json

import numpy as np
import pytest
from tiny_models import TEXTS, make_model

from research.eval.tasks.retrieval import retrieval
from research.inference.embedder import Embedder
from research.interop import mteb as interop
from research.interop.mteb import find_mteb_tasks, make_mteb_model, run_mteb

PROMPTS = {"query": "why: ", "document": "", "STS": "same: "}


@pytest.fixture(scope="module")
def embed():
    return Embedder(make_model(prompts=PROMPTS))


@pytest.fixture(scope="module")
def mteb_model(embed):
    pytest.importorskip("mteb")
    return make_mteb_model(
        *(embed,),
        **{"name": "embax/test", "revision": "step-0", "dim": 16, "max_length": 30},
        prompts=PROMPTS,
        experiment={"depth": 2, "embed_dim": 16},
    )


def test_batches_of_mteb_are_embedded_with_the_prompt_of_task_or_role(
    embed, mteb_model
):
    from mteb.mocks.mock_tasks.classification import MockClassificationTask
    from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
    from mteb.mocks.mock_tasks.sts import MockSTSTask
    from mteb.types import PromptType

    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    for task, prompt_type, role in (
        (MockRetrievalTask, PromptType.query, "query"),
        (MockRetrievalTask, PromptType.document, "document"),
        (MockSTSTask, None, "STS"),
        (MockClassificationTask, None, "query"),
    ):
        vectors = mteb_model.encode(
            batches, task_metadata=task.metadata, prompt_type=prompt_type
        )
        np.testing.assert_array_equal(vectors, embed(TEXTS, role))


def test_mteb_runs_a_tiny_model_on_its_mock_tasks(mteb_model):
    mteb = pytest.importorskip("mteb")
    assert mteb.mock_run(mteb_model).all_passed


def test_results_are_in_the_layout_of_mteb_and_not_computed_again(mteb_model, tmp_path):
    """An experiment has its own folder; a task that fails stops no other."""
    pytest.importorskip("mteb")
    from mteb.mocks.mock_tasks.sts import MockSTSTask

    class BrokenTask(MockSTSTask):
        metadata = MockSTSTask.metadata.model_copy(update={"name": "Broken"})

        def load_data(self, **options):
            raise ConnectionError("no hub")

    tasks = [BrokenTask(), MockSTSTask()]
    (_, none, error), (_, score, _) = run_mteb(mteb_model, tasks, tmp_path)
    assert none is None and error == "no hub" and -100 <= score <= 100
    revision = tmp_path / "results" / "embax__test" / "step-0"
    folder = revision / "experiments" / "depth_2__embed_dim_16"
    assert {path.name for path in folder.iterdir()} == {
        *("MockSTSTask.json", "model_meta.json", "run_settings.jsonl")
    }
    meta = json.loads((folder / "model_meta.json").read_text())
    assert meta["framework"] == ["JAX"] and meta["embed_dim"] == 16
    path = folder / "MockSTSTask.json"
    stored = json.loads(path.read_text())
    stored["scores"]["test"][0]["main_score"] = 0.125
    path.write_text(json.dumps(stored))
    ((_, again, _),) = run_mteb(mteb_model, tasks[1:], tmp_path)
    assert again == 12.5
    ((_, fresh, _),) = run_mteb(mteb_model, tasks[1:], tmp_path, reuse=False)
    assert fresh == pytest.approx(score, abs=1e-4)


def test_unknown_tasks_are_named():
    pytest.importorskip("mteb")
    with pytest.raises(ValueError, match="no such task or benchmark: .*NoSuchTask"):
        find_mteb_tasks(["NoSuchTask"])
    with pytest.raises(ValueError, match="no such task or benchmark: .*NoSuchBench"):
        find_mteb_tasks([], "NoSuchBench")
    assert [task.metadata.name for task in find_mteb_tasks(["STS12"])] == ["STS12"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(interop.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package mteb, .* pip install mteb"):
        find_mteb_tasks(["STS12"])


def test_a_folder_is_scored_as_mteb_scores_its_data(tmp_path):
    """With a title, an empty text, ties, a query among the documents, unknown ids."""
    pytest.importorskip("mteb")
    from mteb._create_dataloaders import _corpus_to_dict
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    texts = {f"d{i}": "abcd"[: 1 + i % 4] * (1 + i % 3) for i in range(130)}
    corpus = [{"_id": name, "title": "", "text": f" {t}"} for name, t in texts.items()]
    corpus[0] |= {"title": "bbd", "text": "c"}
    corpus[1]["text"] = ""
    queries = {"q": "aab", "d7": "abc"}
    qrels = {"q": {"d0": 2, "d1": 1, "lost": 1, "d9": -1}, "d7": {"d7": 1, "d2": 1}}
    lines = [json.dumps({"_id": name, "text": t}) for name, t in queries.items()]
    judgments = [(q, d, grade) for q, row in qrels.items() for d, grade in row.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text(
        "".join(f"{q}\t{d}\t{g}\n" for q, d, g in (*judgments, ("none", "d0", 1)))
    )

    def count_letters(texts, role):
        x = np.array([[t.count(c) for c in "abcd"] for t in texts], np.float32)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    ours = retrieval(data=str(tmp_path), ignore_identical_ids=True)(count_letters)
    joined = [_corpus_to_dict({"id": r["_id"], **r})["text"] for r in corpus]
    cosines = count_letters(queries.values(), "") @ count_letters(joined, "").T
    run = {
        query: {r["_id"]: s for r, s in zip(corpus, row, strict=True)}
        for query, row in zip(queries, cosines.round(5).tolist(), strict=True)
    }
    del run["d7"]["d7"]
    theirs = calculate_retrieval_scores(run, qrels, [10, 100])
    assert ours["ndcg@10"] == pytest.approx(100 * theirs.ndcg["NDCG@10"], abs=1e-3)
    assert ours["recall@100"] == pytest.approx(
        100 * theirs.recall["Recall@100"], abs=1e-3
    )
    assert ours["unknown_documents"] == ours["unknown_queries"] == 1
