"""Fusion of rankings: values by hand, and what changes nothing."""

import numpy as np
import pytest

from research.eval.tasks.retrieval import ranking
from research.inference.fusion import fuse_rankings, parse_fusion

RANDOM = np.random.default_rng(0)
A, B, C, D = range(4)
DENSE = np.array([[0.9, 0.5, 0.1]]), np.array([[A, B, C]])
SPARSE = np.array([[12.0, 6.0, 3.0]]), np.array([[C, A, D]])


def fuse(text, rankings, count):
    return fuse_rankings(parse_fusion(text), rankings, count)


def make_ranking(documents=50, hits=20, queries=3):
    numbers = np.stack([RANDOM.permutation(documents)[:hits] for _ in range(queries)])
    return -np.sort(-RANDOM.normal(size=numbers.shape), axis=1), numbers


def test_reciprocal_ranks_by_hand():
    scores, numbers = fuse("rrf", (DENSE, SPARSE), 4)
    assert numbers.tolist() == [[A, C, B, D]]
    want = [[0.032522, 0.032266, 0.016129, 0.015873]]
    np.testing.assert_allclose(scores, want, atol=1e-6)
    # Ranks from 0 with k = 2 are ranks from 1 with k = 1.
    scores, numbers = fuse("rrf(k=1)", (DENSE, SPARSE), 4)
    assert numbers.tolist() == [[A, C, B, D]]
    np.testing.assert_allclose(scores, [[0.833333, 0.75, 0.333333, 0.25]], atol=1e-6)


def test_weighted_scores_by_hand():
    # A 1 and 1/3, B 1/2 and none, C 0 and 1, D none and 0
    scores, numbers = fuse("weighted(alpha=0.6)", (DENSE, SPARSE), 4)
    assert numbers.tolist() == [[A, C, B, D]]
    np.testing.assert_allclose(scores, [[0.6 + 0.4 / 3, 0.4, 0.3, 0]], atol=1e-6)


@pytest.mark.parametrize("text", ["rrf", "rrf(k=3)", "weighted"])
def test_a_ranking_and_itself_keep_their_order(text):
    ranking = make_ranking()
    _, numbers = fuse(text, (ranking, ranking), 20)
    np.testing.assert_array_equal(numbers, ranking[1])


def test_one_system_alone_is_the_ends_of_the_weights():
    first, second = make_ranking(), make_ranking()
    for alpha, want in ((1.0, first), (0.0, second)):
        _, numbers = fuse(f"weighted(alpha={alpha})", (first, second), 19)
        np.testing.assert_array_equal(numbers, want[1][:, :19])


@pytest.mark.parametrize("text", ["rrf", "weighted(alpha=0.3)"])
def test_the_scale_of_scores_does_not_count(text):
    first, second = make_ranking(), make_ranking()
    moved = 7 * second[0] - 3, second[1]
    want = fuse(text, (first, second), 25)
    scores, numbers = fuse(text, (first, moved), 25)
    np.testing.assert_array_equal(numbers, want[1])
    np.testing.assert_allclose(scores, want[0], atol=1e-6)


def test_the_order_of_the_systems_does_not_count():
    first, second = make_ranking(), make_ranking()
    scores, _ = fuse("rrf", (first, second), 30)
    mirrored, _ = fuse("rrf", (second, first), 30)
    np.testing.assert_allclose(scores, mirrored, atol=1e-7)


def test_missing_documents_are_no_documents():
    first = np.array([[0.5, -np.inf]]), np.array([[A, -1]])
    for text in ("rrf", "weighted"):
        scores, numbers = fuse(text, (first, first), 3)
        assert numbers.tolist() == [[A, -1, -1]]
        assert np.isneginf(scores[0, 1:]).all() and np.isfinite(scores[0, 0])


@pytest.mark.parametrize(
    "text, message",
    [
        ("sum", "unknown name 'sum'; known: rrf, weighted"),
        ("rrf(alpha=1)", "rrf has no argument alpha"),
        ("weighted(alpha='x')", "weighted's alpha is 'x'; it takes a number"),
    ],
)
def test_what_is_no_fusion_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse_fusion(text)


def test_a_retrieval_task_is_scored_with_bm25():
    corpus = {"a": "red fox", "b": "blue whale", "c": "green frog", "d": "red whale"}
    queries = {"q": "red", "r": "blue whale"}
    qrels = {"q": {"a": 1, "d": 1}, "r": {"b": 1}}
    vectors = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    table = dict(zip((*corpus.values(), *queries.values()), vectors, strict=False))
    table["red"] = -table["red fox"] - table["red whale"]

    def embed(texts, role):
        return np.stack([table[text] for text in texts])

    def score(**options):
        options = {"metrics": ("mrr@10", "ndcg@2"), "lexical": True} | options
        return ranking(corpus, queries, qrels, **options)(embed)

    lexical = score()["bm25"]
    assert lexical == 100 > score()["main_score"]
    assert score(hybrid="weighted(alpha=0.0)")["main_score"] == lexical
    assert score(hybrid="weighted(alpha=1.0)")["main_score"] == score()["main_score"]
    assert score(hybrid="rrf")["bm25"] == lexical
    with pytest.raises(ValueError, match="unknown name 'sum'"):
        score(hybrid="sum")
