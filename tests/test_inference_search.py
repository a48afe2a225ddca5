import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from research.inference import search
from research.types import MultiVectors


def mesh_of(count):
    devices = jax.devices()[:count]
    return jax.make_mesh(
        (count,), ("data",), devices=devices, axis_types=(AxisType.Auto,)
    )


def reference(queries, rows, k):
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def whole_numbers(seed, *shape):
    """Small integers: their sums are exact, and equal scores are many."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rows,k", [(5, 3), (64, 10), (101, 7), (3, 20)])
def test_exact_with_ties(devices, rows, k):
    q, d = whole_numbers(0, 9, 6), whole_numbers(1, rows, 6)
    scores, found = search.search(
        q, d, k, mesh=mesh_of(devices), queries_per_step=4, vectors_per_step=5
    )
    want, order = reference(q, d, k)
    assert scores.shape == (9, min(k, rows))
    np.testing.assert_array_equal(scores, want)
    np.testing.assert_array_equal(found, order)


@pytest.mark.parametrize("devices", [1, 8])
def test_precedence_decides_among_equal_scores(devices):
    q, d = whole_numbers(0, 9, 6), whole_numbers(1, 64, 6)
    first = np.random.default_rng(2).permutation(64)
    options = {"mesh": mesh_of(devices), "vectors_per_step": 5}
    scores, found = search.search(q, d, 10, precedence=first, **options)
    order = np.lexsort((np.broadcast_to(first, (9, 64)), -(q @ d.T)), axis=1)[:, :10]
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(q @ d.T, order, 1))
    # Chunks: one per document.
    chunks = MultiVectors(d, np.arange(65))
    found = search.rank_documents(q, chunks, 10, similarity="dot", precedence=first)[1]
    np.testing.assert_array_equal(found, order)


def test_all_devices_and_one_chunk_are_the_default():
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(3, 16)), rng.normal(size=(50, 16))
    scores, found = search.search(q, d, 50)
    want, order = reference(q, d, 50)
    np.testing.assert_allclose(scores, want, atol=1e-5)
    np.testing.assert_array_equal(found, order)


@pytest.mark.parametrize(
    "queries,rows,k,message",
    [
        ((2, 4), (3, 4), 0, "k is 0"),
        ((2, 4), (0, 4), 1, "cannot search 0 vectors"),
        ((2, 4), (3, 5), 1, "width 4 cannot search vectors of width 5"),
    ],
)
def test_what_cannot_be_searched(queries, rows, k, message):
    with pytest.raises(ValueError, match=message):
        search.search(np.ones(queries), np.ones(rows), k)


@pytest.mark.parametrize("vectors,devices", [(1, 1), (16, 8), (1 << 20, 1)])
def test_texts_are_as_good_as_their_best_chunk(vectors, devices):
    q, d = whole_numbers(0, 9, 6), whole_numbers(1, 40, 6)
    document = np.sort(
        np.r_[np.arange(12), np.random.default_rng(2).integers(0, 12, 28)]
    )
    chunks = MultiVectors(d, np.searchsorted(document, np.arange(13)))
    best = np.stack([(q @ d[document == n].T).max(1) for n in range(12)], 1)
    order = np.argsort(-best, axis=1, kind="stable")
    options = {"vectors_per_step": vectors, "mesh": mesh_of(devices)}
    for k in (1, 5, 50):
        got, found = search.search_multi_vectors(q, chunks, k, **options)
        np.testing.assert_array_equal(found, order[:, :k])
        np.testing.assert_array_equal(got, np.take_along_axis(best, order[:, :k], 1))
    with pytest.raises(ValueError, match="k is 0"):
        search.search_multi_vectors(q, chunks, 0)
