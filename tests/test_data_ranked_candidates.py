"""Positives and negatives that were chosen among candidates."""

import json

import pytest

from research.data.ranked_candidates import rank_candidates
from research.data.sources import SOURCES

ROW = {
    "query": "q",
    "seed": "b",
    "candidates": ["a", "b", "c"],
    "query_likelihood": [-3, -2, -1],
    "relevance": [0.1, 0.2, 0.3],
}


def load(tmp_path, row, **options):
    path = tmp_path / "ranked.jsonl"
    path.write_text(json.dumps(row))
    (example,) = SOURCES["ranked_candidates"](path=str(path), **options).examples
    return example


def test_ranks_are_fused_by_their_reciprocals():
    """Ranks 3, 2, 1 and 1, 2, 3: 1/3 + 1, 1/2 + 1/2, 1 + 1/3."""
    assert rank_candidates([[1, 2, 3], [3, 2, 1]], seed=1) == [0, 2, 1]
    assert rank_candidates([[1, 2, 3], [3, 2, 1]], seed=2) == [2, 0, 1]
    assert rank_candidates([[5, 5, 5], [0, 0, 0]], seed=1) == [1, 0, 2]  # all tie


def test_the_best_candidate_is_the_positive(tmp_path):
    example = load(tmp_path, ROW | {"task": "find"})
    assert example[:3] == ("task: find | query: q", ("c",), ("a",))
    assert load(tmp_path, ROW, negative="others").negatives == ("b", "a")


def test_a_seed_that_was_not_found_is_the_last_candidate(tmp_path):
    example = load(tmp_path, ROW | {"seed": "d"})
    assert example[:3] == ("q", ("c",), ("d",))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"relevance": [1]}, "line 1: relevance has 1 scores for 3 candidates"),
        ({"seed": ""}, "line 1: seed is empty"),
        (
            {"candidates": ["b"], "relevance": [1], "query_likelihood": [1]},
            "line 1 has no candidate besides the seed",
        ),
    ],
)
def test_a_bad_row_is_one_sentence(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, ROW | row)
