"""A teacher's vectors on disk are found by the hashes of their texts."""

import numpy as np
import pytest

from research.atomic_write import write_json
from research.experiment.teachers import read_vector_files
from research.inference.index.hashed_vectors import read_hashed_vectors
from research.inference.index.shard_files import write_shard
from research.text.tokenization import hash_texts

TEXTS = ["a", "b", "c", "d", "e"]
VECTORS = np.arange(10, dtype=np.float32).reshape(5, 2)


@pytest.fixture
def folder(tmp_path):
    """Vectors as launch.embed writes them, in a file and in a folder of shards."""
    write_shard(tmp_path / "one.npy", VECTORS, TEXTS, TEXTS)
    shards = tmp_path / "shards"
    for i in range(2):
        path, part = shards / f"vectors-0000{i}-of-00002.npy", slice(3 * i, 3 * i + 3)
        write_shard(path, VECTORS[part], TEXTS[part], TEXTS[part])
    manifest = {"texts": 5, "shard_size": 3, "kind": "dense", "files": []}
    write_json(shards / "manifest.json", manifest | {"options": {}})
    return tmp_path


@pytest.mark.parametrize("name", ["one.npy", "shards"])
def test_vectors_are_read_with_their_hashes(folder, name):
    hashes, vectors = read_hashed_vectors(folder / name)
    np.testing.assert_array_equal(hashes, hash_texts(TEXTS))
    rows = np.array([4, 0, 3, 0])
    np.testing.assert_array_equal(vectors.take(rows, axis=0), VECTORS[rows])


def test_vectors_without_hashes_are_one_sentence(folder):
    with pytest.raises(FileNotFoundError, match="no file or folder .*other.npy"):
        read_hashed_vectors(folder / "other.npy")
    np.save(folder / "other.npy", VECTORS)
    with pytest.raises(FileNotFoundError, match="other.npy has no other.ids.jsonl"):
        read_hashed_vectors(folder / "other.npy")
    lines = ['{"id": "a", "text": 0, "start": 0, "end": 1}'] * 5
    (folder / "other.ids.jsonl").write_text("\n".join(lines))
    message = "5 vectors and the hashes of 0 texts; a teacher's texts are not cut"
    with pytest.raises(ValueError, match=message):
        read_hashed_vectors(folder / "other.npy")


def test_files_of_a_teacher(folder):
    one, shards = str(folder / "one.npy"), str(folder / "shards")
    teacher = read_vector_files(32, queries=one, documents=(shards,))
    assert teacher.width == 2 and teacher.wrap is None
    assert teacher.teacher.queries[0].path == one
    # The hash is of texts and vectors, and of the side that they are for
    same = read_vector_files(32, queries=shards, documents=one).content_hash
    side = read_vector_files(32, queries=one).content_hash
    other = read_vector_files(32, documents=one).content_hash
    assert len({teacher.content_hash, side, other}) == 3
    assert teacher.content_hash == same
    with pytest.raises(ValueError, match="teacher names no file: set queries="):
        read_vector_files(32)
    message = "vectors of queries have 4 dims, those of documents 2"
    with pytest.raises(ValueError, match=message):
        read_vector_files(32, queries=(one, one), documents=(shards,))
