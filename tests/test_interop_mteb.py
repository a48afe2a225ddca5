import json

import numpy as np
import pytest
from tiny_models import TEXTS, make_model

from research.eval.tasks.retrieval import retrieval
from research.inference.embedder import Embedder
from research.interop.mteb import make_mteb_model, mteb_evaluator


@pytest.fixture(scope="module")
def embed():
    return Embedder(make_model(prompts={"query": "why: ", "document": ""}))


@pytest.fixture(scope="module")
def mteb_model(embed):
    pytest.importorskip("mteb")
    return make_mteb_model(
        embed, name="embax/test", revision="step-0", dim=16, max_length=30
    )


def test_batches_of_mteb_are_embedded_by_role(embed, mteb_model):
    from mteb.types import PromptType

    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    for prompt_type, role in (
        (PromptType.query, "query"),
        (PromptType.document, "document"),
        (None, "query"),
    ):
        vectors = mteb_model.encode(batches, prompt_type=prompt_type)
        np.testing.assert_array_equal(vectors, embed(TEXTS, role))


def test_mteb_runs_a_tiny_model_on_its_mock_tasks(mteb_model):
    mteb = pytest.importorskip("mteb")
    assert mteb.mock_run(mteb_model).all_passed


def test_the_evaluator_scores_tasks_of_mteb_by_name_or_object(embed):
    pytest.importorskip("mteb")
    from mteb.mocks.mock_tasks.sts import MockSTSTask

    scores = mteb_evaluator([MockSTSTask()])(embed)
    assert list(scores) == ["main_score", "MockSTSTask"]
    assert -100 <= scores["main_score"] == scores["MockSTSTask"] <= 100
    with pytest.raises(ValueError, match="mteb has no such task: .*NoSuchTask"):
        mteb_evaluator(["NoSuchTask"])
    with pytest.raises(ValueError, match="needs the name of a task"):
        mteb_evaluator([])


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
