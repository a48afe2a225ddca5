"""What a loss needs of its data is checked before the first step."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs.common import make_base
from research.config_sections import section
from research.data.pairs.teacher_texts import Teacher
from research.data.sources import Source
from research.experiment.mining import MINING
from research.experiment.source_checks import (
    build_sources,
    check_classes,
    check_sources,
    describe_sources,
)
from research.experiment.teachers import RunTeacher
from research.experiment.workdir import check_data
from research.losses.registry import build_loss
from research.objectives.registry import OBJECTIVES


def check(
    name,
    scores=None,
    docs_per_query=1,
    similarity="cosine",
    note="",
    text_scores=None,
    teacher_width=0,
    projection=0,
    **options,
):
    """check_sources of a good source and of one with these scores."""
    table = SimpleNamespace(
        scores=np.array([np.nan] * 3 if scores is None else scores, np.float32),
        text_scores=np.array([np.nan, *(text_scores or [])], np.float32),
        has_scores=scores is not None,
        has_text_scores=text_scores is not None,
    )
    states = [
        SimpleNamespace(
            name="x",
            table=table,
            docs_per_query=docs_per_query,
            loss="",
            query_vectors=teacher_width or None,
            document_vectors=teacher_width or None,
            teacher=None,
        )
    ]
    teacher = RunTeacher(Teacher(), teacher_width) if teacher_width else None
    batches = SimpleNamespace(batch_size=4, sources=states)
    sources = {"x": Source([], 0, 1.0, {}, note=note)}
    loss = build_loss({"name": name, **options}, similarity)
    return check_sources(batches, sources, {"": (name, loss)}, 4, teacher, projection)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cosent", {}, "data 'x': loss cosent: this loss needs a score"),
        ("cosine_mse", {}, "needs a score"),
        ("angle", {}, "needs a score"),
        ("triplet", {}, "data 'x': loss triplet: triplet needs hard negatives"),
        ("infonce", {"negatives": "hard"}, "it needs some, and neither"),
        ("gist", {}, "a teacher's vectors of the queries, but config.teacher gives"),
        ("teacher_kl", {"docs_per_query": 2}, "needs a score for each pair"),
        ("margin_mse", {"scores": [0, 1]}, "margin_mse needs hard negatives"),
        ("margin_mse", {"scores": [0, 1], "docs_per_query": 2}, "each of 4 x 2 pairs"),
        (
            "stella",
            {"teacher_width": 6},
            "teacher's vectors have 6 dims and the model's 4: .*projection_width=6 tr",
        ),
        ("cosent", {"scores": [0, 1], "docs_per_query": 2}, "for each of 4 x 2 pairs"),
        (
            "cosine_mse",
            {"scores": [0, 2.5, 5]},
            "scores are from 0 to 5, but cosines .* set score_range=5",
        ),
    ],
)
def test_a_source_that_a_loss_cannot_use_is_refused_at_the_start(
    name, options, message
):
    with pytest.raises(ValueError, match=message):
        check(name, **options)


def test_a_source_that_a_loss_can_use_is_taken():
    assert check("infonce", note="a column is not used") == (
        "data 'x': a column is not used",
    )
    check("triplet", docs_per_query=2)
    check("infonce", docs_per_query=2, negatives="hard")
    check("cosine_mse", [0, 2.5, 5], similarity="dot")
    check("cosine_mse", [-1, 1])
    check("stella", teacher_width=4)
    check("gist", teacher_width=6)
    check("embedding_mse", teacher_width=6, projection=6)
    check("margin_mse", text_scores=[0.5, 2], docs_per_query=2)


def test_the_use_of_scores_is_said():
    (note,) = check("infonce", [0, 1, 0.5])
    assert (
        note
        == "data 'x': infonce does not use its scores: every pair is a positive one"
    )
    (note,) = check("cosent", [0, 5])
    assert note == "data 'x': cosent learns from its scores, from 0 to 5"
    lists = {"docs_per_query": 2, "text_scores": [0.5, -2]}
    (note,) = check("teacher_kl", **lists)
    assert note == "data 'x': teacher_kl learns from its scores, from -2 to 0.5"
    (note,) = check("infonce", **lists)
    assert note == "data 'x': infonce does not use its scores"
    (note,) = check("cosent", [0, 1, 2, 1])
    assert "not as classes" in note


def test_classes_have_numbers_below_their_count():
    def check(scores, classes):
        table = SimpleNamespace(scores=np.array(scores, np.float32))
        batches = SimpleNamespace(sources=[SimpleNamespace(name="x", table=table)])
        config.objective = section(OBJECTIVES, "classify_pairs", classes=classes)
        check_classes(batches, {"x": Source([], 0, 1.0, {}, loss=loss)}, config)

    config, loss = make_base(), ""
    check([0, 2, 1, 2], 3)
    for scores in ([0, 1, 2], [0, 0.5], [np.nan] * 2):
        with pytest.raises(ValueError, match="data 'x' has the scores .* 0 ... 1 "):
            check(scores, 2)
    # What a classifier would not use
    config.mining, loss = section(MINING, "refresh"), "cosent()"
    message = "does not use config.data.x.loss, config.mining"
    with pytest.raises(ValueError, match=message):
        check([0, 1], 3)


def test_a_teacher_or_projection_that_no_loss_uses_is_said():
    (note,) = check("infonce", teacher_width=4)
    assert note == "data 'x': infonce does not use the teacher"
    (note,) = check("gist", teacher_width=6, projection=6)
    assert note.startswith("objective.projection_width=6 trains nothing: no loss comp")
    assert check("stella", teacher_width=6, projection=6) == ()


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path):
    (tmp_path / "data.json").write_text('{"a": "1", "b": "2"}')
    check_data(tmp_path, {"a": "9"})  # there is no checkpoint
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    check_data(tmp_path, {"a": "1", "b": "2"})
    with pytest.raises(ValueError, match="data 'b' has changed since the run"):
        check_data(tmp_path, {"a": "1", "b": "3"})


def test_prompts_that_differ_are_said():
    prompts = ({"query": "a: "}, {"query": "a: "}, {"query": ""})
    same, _, other = (Source([], 0, 1.0, part) for part in prompts)
    assert describe_sources({"x": same, "y": same}) == ()
    (note,) = describe_sources({"x": same, "y": other})
    assert note.startswith("the sources have different prompts: the model learns")


def test_a_sources_mistake_names_the_source():
    sections = {"mine": {"name": "pydocs", "weight": -1.0}}
    with pytest.raises(ValueError, match="data 'mine': pydocs's weight is -1.0; it sh"):
        build_sources(sections)
