import numpy as np
import pytest

from research.analysis.diagnostics.mexa import list_mexa, measure_mexa, report_mexa
from research.eval.bias.mexa import score_cosines, score_translations


def test_a_tie_does_not_count():
    cosines = np.array([[0.9, 0.2, 0.1], [0.3, 0.5, 0.5], [0.2, 0.6, 0.8]])
    assert score_cosines(cosines) == pytest.approx(0.666667, abs=1e-6)
    assert score_cosines(np.eye(4)) == 1
    assert score_cosines(np.ones((4, 4))) == 0


def test_mexa_of_vectors_ignores_their_length():
    x = np.random.default_rng(0).normal(size=(20, 16))
    assert score_translations(x, 3 * x) == 1
    assert score_translations(x, x[::-1]) == 0


def languages(noise):
    """{language: pairs}, and an embed function that aligns at depth 1 by its noise."""
    pairs = {
        name: ([f"{name} {i}" for i in range(40)], [f"pivot {i}" for i in range(40)])
        for name in noise
    }
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 16))

    def embed(texts, role):
        name = texts[0].split()[0]
        deep = base + noise.get(name, 0) * rng.normal(size=base.shape)
        return np.stack([rng.normal(size=base.shape), deep], 1)

    return pairs, embed


def test_a_language_that_is_aligned_better_scores_more():
    pairs, embed = languages({"near": 0.1, "mid": 1.5, "far": 6})
    record = measure_mexa(embed, pairs, 20)
    near, mid, far = (record["mexa"][name][1] for name in pairs)
    assert near == 1 and near > mid > far
    assert max(values[0] for values in record["mexa"].values()) < 0.3
    assert record["retrieval"]["near"] == 1
    assert record["correlation"]["max"] > 0.9
    header, *rows = list_mexa(record)
    assert [row[0] for row in rows[:3]] == ["near", "mid", "far"]
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0][2:5] == ["1.000", "1", "1.000"]


def test_a_language_with_few_sentences_has_no_retrieval():
    pairs, embed = languages({"near": 0.1, "mid": 1.5, "few": 0.1})
    pairs["few"] = tuple(texts[:30] for texts in pairs["few"])

    def embed_some(texts, role):
        return embed(texts, role)[: len(texts)]

    record = measure_mexa(embed_some, pairs, 20)
    assert list(record["retrieval"]) == ["near", "mid"] and len(record["mexa"]) == 3
    header, *rows = list_mexa(record)
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0][-1] == "1.000" and rows[2][-1] == ""
    with pytest.raises(ValueError, match="retrieval=50: the retrieval task needs as"):
        report_mexa(None, data="x", retrieval=50)


def test_one_sentence_has_no_mexa():
    pairs, embed = languages({"near": 0})
    with pytest.raises(ValueError, match="near: MEXA of 1 sentences is undefined"):
        measure_mexa(embed, pairs, 1)
    # All sentences are used, and none are left for retrieval.
    record = measure_mexa(embed, pairs, 40)
    assert record["retrieval"] == record["correlation"] == {}
    assert len(list_mexa(record)[1]) == 5
