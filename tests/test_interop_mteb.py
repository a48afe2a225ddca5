import numpy as np
import pytest
from tiny_models import TEXTS, make_model

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
