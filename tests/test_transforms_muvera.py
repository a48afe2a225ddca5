"""MUVERA: its buckets, its bound by MaxSim, and how it ranks."""

import numpy as np
import pytest

from research.inference.multi_vectors import maxsim
from research.transforms.muvera import FixedEncoding, decode_gray, muvera
from research.types import MultiVectors

QUERY = MultiVectors(np.array([[1, 0], [0.6, 0.8]], "f4"), np.array([0, 2]))
DOCUMENT = MultiVectors(np.array([[0.8, 0.6], [0, 1], [-1, 0]], "f4"), np.array([0, 3]))
PLANE = np.eye(2, dtype="f4")[None]


def draw_texts(seed, count, most, width=16):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, most, count)])
    vectors = rng.normal(size=(offsets[-1], width)).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MultiVectors(vectors, offsets)


def test_gray_codes_of_three_bits():
    bits = np.array([[n >> 2 & 1, n >> 1 & 1, n & 1] for n in range(8)], bool)
    np.testing.assert_array_equal(decode_gray(bits), [0, 1, 3, 2, 7, 6, 4, 5])
    assert decode_gray(np.zeros((2, 0), bool)).tolist() == [0, 0]


def test_buckets_of_a_plane():
    plain, filled = FixedEncoding(PLANE, fill=False), FixedEncoding(PLANE)
    query = filled.encode(QUERY, is_query=True)
    np.testing.assert_allclose(query, [[0, 0, 0, 0, 0.6, 0.8, 1, 0]], atol=1e-6)
    document = plain.encode(DOCUMENT, is_query=False)
    np.testing.assert_allclose(document, [[-1, 0, 0, 1, 0.8, 0.6, 0, 0]], atol=1e-6)
    document = filled.encode(DOCUMENT, is_query=False)
    want = [[-1, 0, 0, 1, 0.8, 0.6, 0.8, 0.6]]
    np.testing.assert_allclose(document, want, atol=1e-6)
    np.testing.assert_allclose(query @ document.T, [[1.76]], atol=1e-6)


@pytest.mark.parametrize("planes", [0, 1, 3])
def test_scores_are_at_most_maxsim(planes):
    q, d = draw_texts(0, 20, 9), draw_texts(1, 30, 15)
    encoding = muvera(16, repetitions=3, planes=planes, projection=0)
    scores = encoding.encode(q, is_query=True) @ encoding.encode(d, is_query=False).T
    assert (scores <= maxsim(q, d) + 1e-4).all()
    assert encoding.width == 3 * 16 << planes


def test_one_bucket_is_the_sum_of_the_query_and_the_mean_of_the_document():
    q, d = draw_texts(0, 4, 9), draw_texts(1, 5, 9)
    encoding = muvera(16, repetitions=1, planes=0, projection=0)
    sums = np.add.reduceat(q.vectors, q.offsets[:-1])
    means = np.add.reduceat(d.vectors, d.offsets[:-1]) / np.diff(d.offsets)[:, None]
    np.testing.assert_allclose(encoding.encode(q, is_query=True), sums, atol=1e-5)
    np.testing.assert_allclose(encoding.encode(d, is_query=False), means, atol=1e-5)


def test_texts_do_not_depend_on_each_other():
    d = draw_texts(1, 12, 9)
    encoding = muvera(16, repetitions=2, planes=3, projection=4, dim=40)
    every = encoding.encode(d, is_query=False)
    some = encoding.encode(d.take_texts([7, 2]), is_query=False)
    np.testing.assert_allclose(some, every[[7, 2]], atol=1e-6)
    assert every.shape == (12, encoding.width) == (12, 40)


def test_the_best_documents_come_first():
    """Queries are noisy vectors of a document."""
    rng = np.random.default_rng(2)
    d = draw_texts(1, 60, 20)
    d = d._replace(vectors=rng.normal(size=(60 * 20, 16)), offsets=np.arange(61) * 20)
    d = d._replace(vectors=d.vectors / np.linalg.norm(d.vectors, axis=1, keepdims=True))
    picks = d.vectors.reshape(60, 20, 16)[:, :8] + 0.2 * rng.normal(size=(60, 8, 16))
    picks /= np.linalg.norm(picks, axis=2, keepdims=True)
    q = MultiVectors(picks.reshape(-1, 16), np.arange(61) * 8)
    best = maxsim(q, d).argmax(1)
    for options, least in (
        ({"repetitions": 10, "planes": 4, "projection": 0}, 0.98),
        ({"repetitions": 20, "planes": 4, "projection": 8}, 0.9),
        ({"repetitions": 20, "planes": 4, "projection": 8, "dim": 1_280}, 0.7),
    ):
        encoding = muvera(16, **options)
        scores = encoding.encode(q, is_query=True) @ (
            encoding.encode(d, is_query=False).T
        )
        share = np.mean(scores.argmax(1) == best)
        assert share >= least, (options, share)


def test_projections_have_no_bias():
    x, y = np.random.default_rng(3).normal(size=(2, 16))
    products = []
    for seed in range(1_000):
        (matrix,) = muvera(16, repetitions=1, projection=4, seed=seed).projections
        products.append((x @ matrix) @ (y @ matrix))
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - x @ y) < 4 * error


def test_numbers_that_make_no_encoding():
    with pytest.raises(ValueError, match="muvera with 0 repetitions"):
        muvera(16, repetitions=0)
