"""Codes instead of vectors: searched as what they stand for, bits in two steps."""

import numpy as np
import pytest

from research.inference.index.quantized_vectors import (
    QuantizedVectors,
    rescore_candidates,
    store_vectors,
)
from research.inference.search import rank_documents
from research.transforms.codebooks import ProductQuantizer
from research.transforms.pipeline import fit_transform
from research.types import MultiVectors

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(400, 16)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)
Q = RANDOM.normal(size=(7, 16)).astype(np.float32)
NAMES = ("int8", "uint8(clip=1.0)", "float8", "bfloat16", "binary(rescore=0)")


def fit(text):
    return fit_transform(text, X, normalize=True).quantizer


def test_a_slice_decodes_its_rows_alone():
    quantizer = fit("int8")
    stored = store_vectors(X, quantizer)
    decoded = quantizer.decode(quantizer.encode(X))
    assert isinstance(stored, QuantizedVectors) and stored.codes.nbytes == X.nbytes / 4
    assert stored.shape == X.shape and len(stored) == 400 and stored.ndim == 2
    np.testing.assert_array_equal(stored[3:9], decoded[3:9])
    some = np.array([5, 5, 2])
    np.testing.assert_array_equal(stored.take(some, 0), decoded[some])
    np.testing.assert_array_equal(np.asarray(stored), decoded)
    assert store_vectors(X, None) is X


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("text", NAMES)
def test_codes_are_searched_as_the_vectors_that_they_stand_for(text, similarity):
    stored = store_vectors(X, fit(text))
    ours = rank_documents(Q, stored, 9, similarity=similarity)
    plain = rank_documents(Q, np.asarray(stored), 9, similarity=similarity)
    np.testing.assert_array_equal(ours[1], plain[1])
    np.testing.assert_allclose(ours[0], plain[0], atol=1e-6)


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_raw_codes_are_compared_as_numbers(name):
    quantizer = fit(f"{name}(raw=True)")
    scores, _ = rank_documents(Q / 5, store_vectors(X, quantizer), 9)
    q, d = (quantizer.encode(x).astype(np.float64) for x in (Q / 5, X))
    q, d = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, d))
    np.testing.assert_allclose(scores, np.sort(q @ d.T)[:, ::-1][:, :9], atol=1e-5)


def test_a_codebook_is_searched_too():
    centroids = RANDOM.normal(size=(4, 256, 4)).astype(np.float32)
    stored = store_vectors(X, ProductQuantizer(centroids))
    scores, _ = rank_documents(Q, stored, 9, similarity="dot")
    want = np.sort(Q @ np.asarray(stored).T)[:, ::-1][:, :9]
    np.testing.assert_allclose(scores, want, atol=1e-4)


@pytest.mark.parametrize("threshold", ["zero", "median"])
def test_binary_codes_are_ranked_by_bits_and_then_by_values(threshold):
    shifted = X + 0.3
    quantizer = fit_transform(
        f"binary(threshold={threshold!r}, rescore=3)", shifted, normalize=False
    ).quantizer
    scores, rows = rank_documents(
        Q, store_vectors(shifted, quantizer), 5, similarity="dot"
    )
    centered = Q - quantizer.thresholds
    bits = np.where(shifted > quantizer.thresholds, 1, -1)
    distance = (np.sign(centered)[:, None] != bits).sum(-1)  # [Q, N]
    for i in range(len(Q)):
        # The 15 with the fewest other bits; of equal ones the first
        candidates = np.lexsort((np.arange(400), distance[i]))[:15]
        values = bits[candidates] @ centered[i]
        order = np.lexsort((candidates, -values.astype(np.float32)))[:5]
        np.testing.assert_allclose(scores[i], values[order], atol=1e-4)
        assert set(rows[i]) <= set(candidates)
    # All documents as candidates: the best by the query's values.
    full = np.sort(centered @ bits.T)[:, ::-1][:, :5]
    many = fit_transform(
        f"binary(threshold={threshold!r}, rescore=80)", shifted, normalize=False
    ).quantizer
    best, _ = rank_documents(Q, store_vectors(shifted, many), 5, similarity="dot")
    np.testing.assert_allclose(best, full, atol=1e-4)


def test_more_than_all_documents_are_all_of_them():
    stored = store_vectors(X[:6], fit("binary"))
    scores, rows = rank_documents(Q, stored, 10)
    assert scores.shape == (7, 6) and np.abs(scores).max() <= 1.0001
    assert (np.sort(rows) == np.arange(6)).all()
    with pytest.raises(ValueError, match="queries of width 3 cannot search .* 16"):
        rank_documents(Q[:, :3], X, 1)


def test_equal_scores_go_by_precedence():
    twins = np.repeat(X[:1], 5, axis=0)
    precedence = np.array([3, 1, 4, 0, 2])
    for text in ("binary", "int8"):
        stored = store_vectors(twins, fit(text))
        _, rows = rank_documents(Q[:1], stored, 5, precedence=precedence)
        assert rows[0].tolist() == [3, 1, 4, 0, 2]


def test_the_best_chunk_of_codes_counts():
    zeros = np.zeros(400, int)
    chunks = MultiVectors(X, np.arange(0, 401, 4), zeros, zeros + 1)
    for text in ("int8", "binary"):
        stored = store_vectors(chunks, fit(text))
        scores, _ = rank_documents(Q, stored, 3, similarity="dot")
        want = (Q @ np.asarray(stored.vectors).T).reshape(7, 100, 4).max(-1)
        np.testing.assert_allclose(scores, np.sort(want)[:, ::-1][:, :3], atol=1e-5)


def test_candidates_are_ranked_by_their_own_vectors():
    candidates = RANDOM.permuted(np.tile(np.arange(400), (7, 1)), axis=1)[:, :30]
    candidates[2, 5:] = -1
    scores, rows = rescore_candidates(Q, X, candidates, 8, normalize=True)
    for i in range(7):
        some = candidates[i][candidates[i] >= 0]
        want = np.sort(X[some] @ Q[i])[::-1][:8]
        np.testing.assert_allclose(scores[i, : len(want)], want, atol=1e-5)
        np.testing.assert_allclose(X[rows[i, : len(want)]] @ Q[i], want, atol=1e-5)
    assert (rows[2, 5:] == -1).all() and np.isneginf(scores[2, 5:]).all()
    # All documents as candidates: an exact search
    everything = np.tile(np.arange(400), (7, 1))
    exact = rank_documents(Q, X, 8, similarity="dot")
    np.testing.assert_array_equal(rescore_candidates(Q, X, everything, 8)[1], exact[1])
