"""Similarities and searches of every kind of embeddings are their definitions."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from research.inference import multi_vector_search
from research.inference.multi_vector_search import search_multi_vectors
from research.inference.search import rank_documents, search_sparse
from research.inference.similarity import (
    embedding_kind,
    normalize_embeddings,
    score_candidates,
    similarity,
    take_texts,
)
from research.types import MultiVectors


def draw_multi(seed, count, width=8):
    """Small integers, whose sums are exact and often equal."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 7, count)])
    vectors = rng.integers(-2, 3, (offsets[-1], width)).astype("f4")
    return MultiVectors(vectors, offsets)


def draw_sparse(seed, count, width=30):
    weights = np.random.default_rng(seed).integers(0, 4, (count, width))
    return csr_array((weights * (weights > 1)).astype("f4"))


def define_maxsim(q, d):
    def split(x):
        return np.split(x.vectors, x.offsets[1:-1])

    scores = [[(a @ b.T).max(1).sum() for b in split(d)] for a in split(q)]
    return np.array(scores)


def rank(scores, k):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def test_a_kind_has_its_similarities():
    q = draw_multi(0, 4)
    assert embedding_kind(q) == "multi_vector"
    assert embedding_kind(q.vectors) == "dense"
    assert embedding_kind(draw_sparse(0, 3)) == "sparse"
    with pytest.raises(ValueError, match="multi-vector embeddings.*'cosine'.*maxsim"):
        similarity(q, q, "cosine")
    with pytest.raises(ValueError, match="'maxsim'; allowed: cosine, dot"):
        similarity(q.vectors, q.vectors, "maxsim")


def test_similarities_are_their_definitions():
    q, d = draw_multi(0, 5), draw_multi(1, 9)
    want = define_maxsim(q, d)
    np.testing.assert_array_equal(similarity(q, d, "maxsim_dot"), want)
    unit = normalize_embeddings((q, d))
    cosines = define_maxsim(*unit)
    np.testing.assert_allclose(similarity(q, d, "maxsim"), cosines, atol=1e-5)
    lengths = np.diff(q.offsets)[:, None]
    np.testing.assert_allclose(
        similarity(q, d, "meanmaxsim"), cosines / lengths, atol=1e-5
    )
    a, b = draw_sparse(0, 5), draw_sparse(1, 9)
    dots = a.toarray() @ b.toarray().T
    np.testing.assert_array_equal(similarity(a, b, "dot"), dots)
    norms = [np.linalg.norm(x.toarray(), axis=1) for x in (a, b)]
    np.testing.assert_allclose(
        similarity(a, b, "cosine"), dots / np.outer(*norms), atol=1e-6
    )


@pytest.mark.parametrize("size", [1, 50, 1 << 20])
def test_searches_rank_by_the_similarity(size, monkeypatch):
    for name in ("QUERY_VECTORS", "READ_VECTORS", "READ_DOCUMENTS"):
        monkeypatch.setattr(multi_vector_search, name, 9)
    q, d = draw_multi(0, 8), draw_multi(1, 20)
    want = rank(define_maxsim(q, d), 6)
    got = search_multi_vectors(q, d, 6, vectors_per_step=size)
    np.testing.assert_array_equal(got, want)
    a, b = draw_sparse(0, 8), draw_sparse(1, 20)
    want = rank(similarity(a, b, "dot"), 6)
    np.testing.assert_array_equal(search_sparse(a, b, 6, scores_per_step=size), want)
    np.testing.assert_array_equal(rank_documents(a, b, 6, similarity="dot"), want)


def test_scores_of_all_tokens_are_never_in_memory(monkeypatch):
    shapes, find = [], multi_vector_search.find_best_scores

    def record(queries, documents, *, score):
        shapes.append((len(queries), *documents.shape[:2]))
        return find(queries, documents, score=score)

    monkeypatch.setattr(multi_vector_search, "find_best_scores", record)
    rng = np.random.default_rng(0)
    # Documents of 1 ... 40 vectors, which are not integers
    offsets = np.cumsum([0, *rng.integers(1, 41, 90)])
    vectors = rng.normal(size=(offsets[-1], 8)).astype("f4")
    q, d = draw_multi(0, 6), MultiVectors(vectors, offsets)
    got = search_multi_vectors(q, d, 90, vectors_per_step=128, normalize=True)
    want = rank(define_maxsim(*normalize_embeddings((q, d))), 90)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_array_equal(got[1], want[1])
    assert shapes and all(n * length <= 128 for _, n, length in shapes)


def test_the_mean_changes_no_order():
    q, d = draw_multi(0, 8), draw_multi(1, 20)
    total, order = rank_documents(q, d, 9, similarity="maxsim")
    mean, same_order = rank_documents(q, d, 9, similarity="meanmaxsim")
    np.testing.assert_array_equal(order, same_order)
    np.testing.assert_allclose(mean * np.diff(q.offsets)[:, None], total, rtol=1e-6)


@pytest.mark.parametrize("draw", [draw_multi, draw_sparse])
def test_some_texts_in_another_order(draw):
    d = draw(1, 9)
    name = "maxsim_dot" if draw is draw_multi else "dot"
    every = similarity(draw(0, 3), d, name)
    some = similarity(draw(0, 3), take_texts(d, [7, 0, 7]), name)
    np.testing.assert_array_equal(some, every[:, [7, 0, 7]])
    query = take_texts(draw(0, 3), [2])
    np.testing.assert_array_equal(score_candidates(query, d, name), every[2])


def test_chunks_keep_their_characters():
    chunks = MultiVectors(
        np.eye(4), np.array([0, 1, 4]), np.arange(4), np.arange(4) + 1
    )
    np.testing.assert_array_equal(chunks.text_numbers, [0, 1, 1, 1])
    np.testing.assert_array_equal(chunks.take_texts([1]).start, [1, 2, 3])


def test_what_cannot_be_searched():
    q, d = draw_multi(0, 3), draw_multi(1, 4, width=5)
    with pytest.raises(ValueError, match="width 8 cannot search vectors of width 5"):
        search_multi_vectors(q, d, 2)
    with pytest.raises(ValueError, match="k is 0"):
        search_sparse(draw_sparse(0, 2), draw_sparse(1, 3), 0)
