"""faiss over a folder of vectors: as good as an exact search where it is exact."""

import numpy as np
import pytest

from research.atomic_write import read_json
from research.inference.index.faiss_index import build_index, has_index, search_index
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.shard_files import write_shard
from research.inference.index.vector_shards import ShardedVectors
from research.inference.search import rank_documents
from research.transforms.pipeline import fit_transform

faiss = pytest.importorskip("faiss")
RANDOM = np.random.default_rng(0)
CENTERS = RANDOM.normal(size=(20, 16))
X = CENTERS[RANDOM.integers(20, size=600)] + RANDOM.normal(size=(600, 16))
X = X.astype("f4")
Q = (X[::60] + 0.1 * RANDOM.normal(size=(10, 16))).astype("f4")


def make_vectors(folder, text=None):
    """A folder of three shards, with codes if a quantizer is named."""
    quantizer = None
    if text is not None:
        quantizer = fit_transform(text, X, normalize=False).quantizer
    paths = [folder / f"{i}.npy" for i in range(3)]
    for path, part in zip(paths, np.split(X, 3), strict=True):
        names = ["a"] * len(part)
        write_shard(path, store_vectors(part, quantizer), names, names)
    return ShardedVectors(paths, quantizer)


def measure_recall(rows, exact):
    return np.mean([np.isin(a, b).mean() for a, b in zip(rows, exact, strict=True)])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(
    "factory, options, recall",
    [
        ("Flat", "", 1),
        ("IVF16,Flat", "nprobe=16", 1),
        ("HNSW16", "efSearch=600", 0.99),
        ("PQ8x4,RFlat", "", 0.5),
    ],
)
def test_an_index_finds_what_an_exact_search_finds(
    factory, options, recall, similarity, tmp_path
):
    vectors = make_vectors(tmp_path)
    assert build_index(tmp_path, vectors, factory, similarity=similarity)
    exact = rank_documents(Q, X, 10, similarity=similarity)
    scores, rows = search_index(
        tmp_path, Q, vectors, 10, similarity=similarity, options=options
    )
    assert measure_recall(rows, exact[1]) >= recall
    if recall == 1:
        np.testing.assert_array_equal(rows, exact[1])
        np.testing.assert_allclose(scores, exact[0], atol=1e-4)
    # It is built once, and again for another name.
    assert not build_index(tmp_path, vectors, factory, similarity=similarity)
    assert build_index(tmp_path, vectors, "SQ8", similarity=similarity)
    assert read_json(tmp_path / "index.json")["factory"] == "SQ8"


@pytest.mark.parametrize(
    "factory, options",
    [("BFlat", ""), ("BHNSW16", "efSearch=600"), ("BIVF8", "nprobe=8")],
)
def test_a_binary_index_finds_what_we_find_by_bits(factory, options, tmp_path):
    vectors = make_vectors(tmp_path, "binary(rescore=10)")
    build_index(tmp_path, vectors, factory)
    ours = rank_documents(Q, vectors, 10)
    scores, rows = search_index(tmp_path, Q, vectors, 10, options=options)
    # Candidates at the last distance are chosen differently.
    assert measure_recall(rows, ours[1]) > 0.9
    np.testing.assert_allclose(scores[:, 0], ours[0][:, 0], atol=1e-5)


def test_codes_are_indexed_as_what_they_stand_for(tmp_path):
    vectors = make_vectors(tmp_path, "int8")
    build_index(tmp_path, vectors, "Flat")
    _, rows = search_index(tmp_path, Q, vectors, 10)
    np.testing.assert_array_equal(rows, rank_documents(Q, vectors, 10)[1])


def test_fewer_vectors_than_asked_for(tmp_path):
    vectors = make_vectors(tmp_path)
    build_index(tmp_path, vectors, "IVF64,Flat")
    scores, rows = search_index(tmp_path, Q, vectors, 300, options="nprobe=1")
    assert (rows == -1).any() and (np.isneginf(scores) == (rows < 0)).all()
    assert search_index(tmp_path, Q, vectors, 9_999)[1].shape == (10, 600)


def test_a_build_that_was_stopped_is_made_again(tmp_path):
    vectors = make_vectors(tmp_path)
    build_index(tmp_path, vectors, "Flat")
    (tmp_path / "index.json").unlink()
    assert not has_index(tmp_path)
    assert build_index(tmp_path, vectors, "Flat") and has_index(tmp_path)


@pytest.mark.parametrize(
    "factory, text, message",
    [
        ("HSNW32", None, "faiss has no index 'HSNW32' of width 16"),
        ("PQ5x8", None, "faiss has no index 'PQ5x8'|faiss cannot build PQ5x8"),
        ("HNSW32", "binary", "faiss has no binary index 'HNSW32' of width 16"),
        ("IVF1000,Flat", None, "faiss cannot build IVF1000,Flat of 600 vectors"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(factory, text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path, make_vectors(tmp_path, text), factory)
    assert not has_index(tmp_path) and not (tmp_path / "index.faiss").exists()


def test_what_cannot_be_searched_is_one_sentence(tmp_path):
    vectors = make_vectors(tmp_path)
    build_index(tmp_path, vectors, "Flat")
    with pytest.raises(ValueError, match="built for similarity 'cosine', not 'dot'"):
        search_index(tmp_path, Q, vectors, 5, similarity="dot")
    with pytest.raises(ValueError, match="built for vectors 600, not 400"):
        search_index(tmp_path, Q, ShardedVectors(vectors.paths[:2]), 5)
    with pytest.raises(ValueError, match="no parameter 'nprobes=4'; write nprobe=16"):
        search_index(tmp_path, Q, vectors, 5, options="nprobes=4")
    (tmp_path / "index.faiss").write_bytes(b"half")
    with pytest.raises(ValueError, match="index.faiss is damaged"):
        search_index(tmp_path, Q, vectors, 5)
