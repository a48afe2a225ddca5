import random

import numpy as np
import pytest
from scipy.sparse import csr_array

from research.inference.index.quantized_vectors import store_vectors
from research.inference.mining import mine_negatives, score_pairs
from research.inference.mining_rules import (
    MiningRules,
    drop_candidates,
    fill_negatives,
)
from research.inference.similarity import similarity as compare
from research.transforms.codebooks import ProductQuantizer
from research.transforms.quantization import ScalarQuantizer
from research.types import MultiVectors

# Passages in the plane by their cosine with the one query (1, 0).
COSINES = [0.9, 0.8, 0.7, 0.6, 0.5, -0.5]


def plane(cosines):
    cosines = np.array(cosines, np.float32)
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


def mine(rules=None, positives=((0, 1),), excluded=(), **options):
    """The negatives of the query (1, 0), as a list without the missing ones."""
    mined = mine_negatives(
        np.array([[2.0, 0.0]], np.float32),
        plane(COSINES),
        np.array(positives),
        MiningRules(**(rules or {})),
        excluded=np.array(excluded, int).reshape(-1, 2),
        **options,
    )
    return [number for number in mined.passages[0].tolist() if number >= 0], mined


@pytest.mark.parametrize(
    "rules,negatives",
    [
        ({"negatives": 2}, [0, 2]),
        ({"negatives": 2, "range_min": 1}, [2, 3]),
        ({"negatives": 2, "range_min": 2, "range_max": 4}, [3, 4]),
        ({"negatives": 4, "range_max": 4}, [0, 2, 3, 4]),
        # The positive has 0.8
        ({"negatives": 3, "absolute_margin": 0.15}, [3, 4, 5]),
        ({"negatives": 3, "relative_margin": 0.05}, [2, 3, 4]),
        ({"negatives": 3, "relative_margin": 0.2}, [3, 4, 5]),
        ({"negatives": 5, "relative_margin": 0.99}, [5]),
        ({"negatives": 5, "max_score": 0.65, "min_score": 0.4}, [3, 4]),
        ({"negatives": 5, "absolute_margin": -9.0}, [0, 2, 3, 4, 5]),
        ({"negatives": 5, "absolute_margin": 9.0}, []),
        # Ranks are those of what passes the thresholds
        ({"negatives": 1, "range_min": 1, "absolute_margin": 0.15}, [4]),
    ],
)
def test_rules_choose_the_negatives(rules, negatives):
    found, mined = mine(rules)
    assert found == negatives
    assert mined.missing.tolist() == [rules["negatives"] - len(negatives)]
    want = [COSINES[number] for number in negatives]
    np.testing.assert_allclose(mined.scores[0, : len(found)], want, atol=1e-6)
    np.testing.assert_allclose(mined.positive_scores, [0.8], atol=1e-6)


@pytest.mark.parametrize("codes", ["pq", "raw"])
def test_passages_are_compared_by_their_codes(codes):
    """Candidates and positives alike: with those that codes stand for."""
    rng = np.random.default_rng(0)
    queries, passages = (rng.normal(size=(n, 8)).astype("f4") for n in (5, 40))
    if codes == "pq":
        quantizer = ProductQuantizer(rng.normal(size=(2, 256, 4)).astype("f4"))
    else:
        ranges = np.stack([passages.min(0), passages.max(0)])
        quantizer = ScalarQuantizer(ranges, "int8", raw=True)
    positives = np.stack([np.arange(5), np.arange(5)], axis=1)
    rules = MiningRules(negatives=4, relative_margin=0.05)
    by_codes, by_vectors = (
        mine_negatives(q, d, positives, rules)
        for q, d in (
            (queries, store_vectors(passages, quantizer)),
            (
                quantizer.center_queries(queries),
                quantizer.decode(quantizer.encode(passages)),
            ),
        )
    )
    np.testing.assert_array_equal(by_codes.passages, by_vectors.passages)
    np.testing.assert_allclose(by_codes.scores, by_vectors.scores, atol=1e-5)
    want = by_vectors.positive_scores
    np.testing.assert_allclose(by_codes.positive_scores, want, atol=1e-5)


def test_margins_lower_the_threshold_of_a_negative_score():
    scores = np.array([[-0.55, -0.65]], np.float32)
    rules = MiningRules(relative_margin=0.2)  # below -0.5 - 0.1
    passing, dropped = drop_candidates(scores, np.array([-0.5], np.float32), rules)
    assert passing.tolist() == [[-np.inf, scores[0, 1]]]
    assert dropped == {"relative_margin": 1}


def test_margins_hold_for_the_worst_positive():
    rules = {"negatives": 3, "relative_margin": 0.05}
    found, mined = mine(rules, positives=[(0, 1), (0, 3)])
    assert found == [4, 5]
    np.testing.assert_allclose(mined.positive_scores, [0.8, 0.6], atol=1e-6)
    assert mined.dropped == {"relative_margin": 2} and mined.candidates == 4


def test_excluded_passages_take_no_place():
    rules = {"negatives": 2, "range_max": 2}
    assert mine(rules)[0] == [0, 2]
    assert mine(rules, excluded=[(0, 0)])[0] == [2, 3]
    assert mine(rules, excluded=[(0, 0), (0, 2), (0, 3)])[0] == [4, 5]


def test_another_models_scores_rank_and_pass_the_thresholds():
    calls = []

    def rescore(pairs):
        calls.append(pairs)
        return -pairs[:, 1].astype(np.float32)  # the last passage is the best one

    rules = {"negatives": 3, "absolute_margin": 1.0}
    found, mined = mine(rules, positives=[(0, 2)], rescore=rescore)
    assert found == [3, 4, 5] and len(calls) == 1
    assert mined.scores[0].tolist() == [-3, -4, -5]
    assert mined.positive_scores.tolist() == [-2]


def test_random_negatives_are_those_of_the_seed_and_of_the_window():
    rules = {"negatives": 2, "range_min": 1, "range_max": 4, "sampling": "random"}
    found = [mine(rules, seed=seed)[0] for seed in range(30)]
    assert found == [mine(rules, seed=seed)[0] for seed in range(30)]
    assert {tuple(numbers) for numbers in found} == {(2, 3), (2, 4), (3, 4)}


def test_random_passages_fill_what_is_missing():
    rules = {"negatives": 4, "max_score": 0.55, "fill": True}
    for seed in range(20):
        found, mined = mine(rules, excluded=[(0, 0)], seed=seed)
        # The positive and what is excluded are never taken
        assert found[:2] == [4, 5] and sorted(found) == [2, 3, 4, 5]
        assert mined.missing.tolist() == [2]
        want = [COSINES[number] for number in found]
        np.testing.assert_allclose(mined.scores[0], want, atol=1e-6)
    with pytest.raises(ValueError, match="6 passages, of which 2 belong to one query"):
        mine(rules | {"negatives": 5}, excluded=[(0, 0)])


def test_filled_rows_are_different_passages():
    negatives = np.array([[3, -1, -1], [-1, -1, -1], [0, 1, 2]])
    excluded = np.array([[0, 0], [1, 4], [0, 0]])
    filled = fill_negatives(negatives, excluded, 5, seed=0)
    assert filled[0, 0] == 3 and filled[2].tolist() == [0, 1, 2]
    assert all(len(set(row)) == 3 for row in filled.tolist())
    assert 0 not in filled[0] and 4 not in filled[1] and (filled >= 0).all()
    np.testing.assert_array_equal(filled, fill_negatives(negatives, excluded, 5, 0))


@pytest.mark.parametrize(
    "rules,message",
    [
        ({"negatives": 0}, "negatives is 0; it should be at least 1"),
        ({"range_min": -1}, "range_min is -1"),
        ({"range_min": 5, "range_max": 7}, "leave 2 candidates for 3 negatives"),
        ({"range_min": 5, "range_max": 2}, "leave 0 candidates"),
        ({"relative_margin": 1.5}, "relative_margin is 1.5; .* 0.05 keeps negatives"),
        ({"min_score": 0.8, "max_score": 0.2}, "min_score 0.8 is above max_score 0.2"),
        ({"sampling": "best"}, "sampling is 'best'; allowed: top, random"),
    ],
)
def test_rules_that_cannot_hold(rules, message):
    with pytest.raises(ValueError, match=message):
        MiningRules(**rules)


@pytest.mark.parametrize("kind,similarity", [("maxsim", "maxsim"), ("sparse", "dot")])
def test_every_kind_is_mined_by_its_similarity(kind, similarity):
    rng = np.random.default_rng(0)

    def draw(count):
        if kind == "sparse":
            return csr_array(rng.random((count, 12)).astype("f4").round())
        offsets = np.cumsum([0, *rng.integers(1, 5, count)])
        return MultiVectors(rng.normal(size=(offsets[-1], 6)).astype("f4"), offsets)

    queries, passages = draw(4), draw(15)
    positives = np.array([[0, 3], [1, 5], [2, 0], [3, 9], [0, 7]])
    every = compare(queries, passages, similarity)  # [4, 15]
    rules = MiningRules(negatives=3)
    mined = mine_negatives(queries, passages, positives, rules, similarity=similarity)
    np.testing.assert_allclose(
        mined.positive_scores, every[tuple(positives.T)], rtol=1e-5
    )
    every[tuple(positives.T)] = -np.inf
    order = np.argsort(-every, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(mined.passages, order)
    some = np.array([[3, 1], [0, 2], [3, 4]])
    got = score_pairs(queries, passages, some, similarity)
    np.testing.assert_allclose(got, every[tuple(some.T)], rtol=1e-5)


def test_pairs_are_scored_by_either_similarity():
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    pairs = np.array([[0, 3], [2, 1], [2, 1]])
    dots = [q[i] @ d[j] for i, j in pairs]
    np.testing.assert_allclose(score_pairs(q, d, pairs, "dot"), dots, rtol=1e-6)
    norms = [np.linalg.norm(q[i]) * np.linalg.norm(d[j]) for i, j in pairs]
    cosines = np.array(dots) / norms
    np.testing.assert_allclose(score_pairs(q, d, pairs), cosines, rtol=1e-6)


class Peer:
    """Vectors of texts, as sentence-transformers' models and cross-encoders serve."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_query(self, texts, **options):
        del options
        return np.stack([self.vectors[text] for text in texts])

    encode_document = encode_query

    def predict(self, pairs, **options):
        import torch

        del options
        scores = [self.vectors[a] @ self.vectors[b][::-1] for a, b in pairs]
        return torch.tensor(np.array(scores))


@pytest.fixture(scope="module")
def pairs():
    """40 queries, some with two positives, 90 passages and the vectors of all."""
    rng = np.random.default_rng(0)
    texts = [f"q{i}" for i in range(40)] + [f"p{i}" for i in range(90)]
    vectors = rng.normal(size=(130, 8)).astype(np.float32)
    # A positive is near its query, and two queries share some passages
    vectors[40:80] = vectors[:40] + rng.normal(size=(40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [(f"q{i}", f"p{i}") for i in range(40)]
    rows += [(f"q{i}", f"p{i + 1}") for i in range(0, 12, 3)] + rows[:2]
    return (
        rows,
        [f"p{i}" for i in range(60, 90)],
        dict(zip(texts, vectors, strict=True)),
    )


@pytest.mark.parametrize("rescored", [False, True])
@pytest.mark.parametrize("with_corpus", [False, True])
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"negatives": 2, "range_min": 3, "range_max": 9},
        {"negatives": 4, "relative_margin": 0.05},
        {"negatives": 2, "absolute_margin": 0.1, "min_score": 0.1},
        {"negatives": 2, "max_score": 0.5, "range_min": 2, "range_max": 200},
        {"negatives": 3, "range_max": 20, "sampling": "random", "max_score": 0.7},
    ],
)
def test_negatives_are_those_of_sentence_transformers(
    pairs, rules, with_corpus, rescored
):
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("datasets")
    util = pytest.importorskip("sentence_transformers.util")
    rows, extra, vectors = pairs
    if rescored and not MiningRules(**rules).thresholds:
        pytest.skip("sentence-transformers then ignores the cross-encoder")
    extra = extra if with_corpus else []
    # Theirs: a row for each query and positive that has all negatives
    peer = Peer(vectors)
    peer.device = torch.device("cpu")
    peer.similarity, peer.similarity_pairwise = util.cos_sim, util.pairwise_cos_sim
    options = {("num_negatives" if k == "negatives" else k): rules[k] for k in rules}
    options.setdefault("num_negatives", 3)
    options["sampling_strategy"] = options.pop("sampling", "top")
    columns = dict(zip(("query", "answer"), zip(*rows, strict=True), strict=True))
    random.seed(7)
    theirs = util.mine_hard_negatives(
        datasets.Dataset.from_dict({k: list(v) for k, v in columns.items()}),
        peer,
        corpus=extra or None,
        cross_encoder=peer if rescored else None,
        output_format="n-tuple",
        output_scores=True,
        verbose=False,
        **options,
    )
    # Ours, from the same texts in the same order
    queries = list(dict.fromkeys(query for query, _ in rows))
    passages = list(dict.fromkeys([*extra, *(p for _, p in rows)]))
    numbers = [(queries.index(q), passages.index(p)) for q, p in rows]

    def rescore(pairs):
        texts = [(queries[i], passages[j]) for i, j in pairs]
        return peer.predict(texts).numpy()

    mined = mine_negatives(
        peer.encode_query(queries),
        peer.encode_query(passages),
        np.array(numbers),
        MiningRules(**rules),
        rescore=rescore if rescored else None,
        seed=7,
    )
    ours = {
        pair: ([passages[j] for j in mined.passages[i]], [score, *mined.scores[i]])
        for pair, (i, _), score in zip(
            rows, numbers, mined.positive_scores, strict=True
        )
        if not mined.missing[i]
    }
    assert len(theirs) == len(ours) > 0
    for row in theirs:
        texts, scores = ours[row["query"], row["answer"]]
        count = options["num_negatives"]
        assert texts == [row[f"negative_{n}"] for n in range(1, count + 1)]
        np.testing.assert_allclose(scores, row["scores"], atol=1e-6)
