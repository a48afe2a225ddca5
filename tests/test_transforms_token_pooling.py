"""Token pooling: sentence-transformers' clusters, and what they leave alone."""

import numpy as np
import pytest

from research.transforms.token_pooling import cluster_vectors, pool_tokens
from research.types import MultiVectors

ANGLES = np.deg2rad([0, 5, 10, 80, 90, 180, 185])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype("f4")


def draw_texts(seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 20, 6)])
    vectors = rng.normal(size=(offsets[-1], 8)).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MultiVectors(vectors, offsets)


def test_clusters_of_a_plane():
    got = cluster_vectors(VECTORS, 7 / 3, 0)
    want = [[-0.998097, -0.043578], [0.993667, 0.086935], [0.086824, 0.992404]]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert len(cluster_vectors(VECTORS, 2, 0)) == 3
    assert len(cluster_vectors(VECTORS, 3, 0)) == 2


def test_the_number_of_vectors_and_the_first_one():
    texts = draw_texts()
    for factor in (1.5, 2, 4):
        pooled = pool_tokens(texts, factor=factor)
        lengths = np.diff(texts.offsets) - 1
        want = 1 + np.where(lengths > 0, np.maximum(lengths // factor, 1), 0)
        np.testing.assert_array_equal(np.diff(pooled.offsets), want)
        first = pooled.vectors[pooled.offsets[:-1]]
        np.testing.assert_allclose(first, texts.vectors[texts.offsets[:-1]], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(pooled.vectors, axis=1), 1, 1e-6)


def test_a_factor_of_one_changes_nothing():
    texts = draw_texts()
    pooled = pool_tokens(texts, factor=1)
    np.testing.assert_allclose(pooled.vectors, texts.vectors, atol=1e-6)
    np.testing.assert_array_equal(pooled.offsets, texts.offsets)


def test_duplicates_are_merged_first():
    vectors = np.concatenate([VECTORS[:1], VECTORS[[3, 0, 3, 0, 5]]])
    pooled = pool_tokens(MultiVectors(vectors, np.array([0, 6])), factor=5 / 3)
    assert len(pooled.vectors) == 4
    for vector in VECTORS[[3, 0, 5]]:
        assert np.abs(pooled.vectors - vector).max(1).min() < 1e-6


def test_vectors_are_those_of_sentence_transformers():
    package = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules")
    torch = pytest.importorskip("torch")
    texts = draw_texts(1)
    split = np.split(texts.vectors, texts.offsets[1:-1])
    for factor in (2, 3):
        theirs = package.HierarchicalTokenPooling(pool_factor=factor)
        want = theirs.pool([torch.tensor(x) for x in split])
        pooled = pool_tokens(texts, factor=factor)
        np.testing.assert_array_equal(np.diff(pooled.offsets), list(map(len, want)))
        want = np.concatenate([np.asarray(x) for x in want])
        np.testing.assert_allclose(pooled.vectors, want, atol=1e-5)


def test_factors_below_one_are_refused():
    with pytest.raises(ValueError, match="by the factor 0.5 with 1 protected"):
        pool_tokens(draw_texts(), factor=0.5)
