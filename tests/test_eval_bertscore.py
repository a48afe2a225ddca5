"""BERTScore is its definition, and a similarity of pairs of token vectors."""

import numpy as np
import pytest

from research.eval.bertscore import bertscore, weigh_tokens
from research.eval.tasks.sts import correlation
from research.types import MultiVectors


def draw(seed, count):
    """Texts of 3 ... 8 tokens, of which the first and the last are special."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(3, 9, count)])
    token_ids = rng.integers(0, 6, offsets[-1])
    token_ids[offsets[:-1]] = token_ids[offsets[1:] - 1] = -1
    vectors = rng.normal(size=(offsets[-1], 5)).astype("f4")
    return MultiVectors(vectors, offsets, token_ids=token_ids)


def split(texts):
    bounds = texts.offsets[1:-1]
    vectors = texts.vectors / np.linalg.norm(texts.vectors, axis=1, keepdims=True)
    return list(
        zip(np.split(vectors, bounds), np.split(texts.token_ids, bounds), strict=True)
    )


def define_mean(ours, theirs, weigh):
    """The weighted mean of a text's best cosines, token by token."""
    (x, ids), (y, _) = ours, theirs
    total = weight = 0.0
    for vector, token in zip(x, ids, strict=True):
        if token >= 0:
            total += weigh(token) * max(float(vector @ other) for other in y)
            weight += weigh(token)
    return total / weight


@pytest.mark.parametrize("idf", [False, True])
def test_scores_are_their_definition(idf):
    candidates, references = draw(0, 7), draw(1, 7)

    def weigh(token):
        count = sum(token in ids for _, ids in split(references))
        return np.log(8 / (count + 1)) if idf else 1.0

    got = bertscore(candidates, references, idf=idf)
    for i, (a, b) in enumerate(zip(split(candidates), split(references), strict=True)):
        p, r = define_mean(a, b, weigh), define_mean(b, a, weigh)
        want = p, r, 2 * p * r / (p + r)
        np.testing.assert_allclose([x[i] for x in got], want, rtol=1e-4)


def test_scores_of_a_plane_and_a_baseline():
    a = MultiVectors(np.array([[1, 0], [0.6, 0.8]], "f4"), np.array([0, 2]))
    b = MultiVectors(np.array([[0.8, 0.6], [0, 1], [-1, 0]], "f4"), np.array([0, 3]))
    want = np.array([[0.88], [0.386667], [0.537263]])
    np.testing.assert_allclose(bertscore(a, b), want, atol=1e-6)
    rescaled = bertscore(a, b, baseline=0.2)
    np.testing.assert_allclose(rescaled, (want - 0.2) / 0.8, atol=1e-6)
    with pytest.raises(ValueError, match="not those of chunks"):
        bertscore(a, b, idf=True)
    with pytest.raises(ValueError, match="2 candidates.* 1 references"):
        bertscore(draw(0, 2), b)


def test_idf_weights_and_texts_without_tokens():
    offsets, vectors = np.array([0, 2, 4, 6]), np.ones((6, 2), "f4")
    references = MultiVectors(vectors, offsets, token_ids=np.array([4, 4, 4, 9, 4, -1]))
    texts = MultiVectors(vectors, offsets, token_ids=np.array([9, 4, 8, -1, -1, -1]))
    weights = weigh_tokens(texts, references)
    want = [0.693147, 0, 1.386294, 0, 0, 0]
    np.testing.assert_allclose(weights, want, atol=1e-6)
    assert bertscore(texts, references).f1[2] == 0


def test_pairs_are_scored_by_their_tokens():
    texts, human = draw(0, 12), [1.0, 3.0, 0.0, 4.0, 2.0, 5.0]
    names = [f"text {i}" for i in range(12)]
    evaluate = correlation(names[:6], names[6:], human, "x", similarity="bertscore")
    scores = evaluate(lambda texts_, role: texts)
    parts = texts.take_texts(range(6)), texts.take_texts(range(6, 12))
    f1 = bertscore(*parts).f1
    ranks = [np.argsort(np.argsort(x)) for x in (f1, human)]
    assert scores["main_score"] == pytest.approx(100 * np.corrcoef(*ranks)[0, 1])
    assert {"maxsim", "bertscore_idf"} <= scores["similarities"].keys()
    with pytest.raises(ValueError, match="of these embeddings is 'bertscore'"):
        evaluate(lambda texts_, role: np.eye(12))
