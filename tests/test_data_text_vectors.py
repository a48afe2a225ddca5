"""A teacher's vectors and scores are those of a batch's texts, or are missed."""

from typing import NamedTuple

import numpy as np
import pytest

from research.data.examples import Example
from research.data.pairs.pair_batches import make_pair_batches
from research.data.pairs.teacher_texts import Teacher
from research.data.pairs.text_vectors import TextVectors, find_rows
from research.data.sources import Source
from research.text.tokenization import hash_texts, train_tokenizer

QUERIES = [f"query {i}" for i in range(6)]
DOCUMENTS = [[f"document {i} {k}" for k in range(4)] for i in range(6)]


class Rows(NamedTuple):
    """Vectors in memory, as those of a file."""

    array: np.ndarray

    @property
    def shape(self):
        return self.array.shape

    def take(self, rows, axis):
        return self.array.take(rows, axis)


def file_of(texts, width=3, seed=0):
    """Vectors of texts in another order, and {text: vector}."""
    rng = np.random.default_rng(seed)
    texts = [texts[i] for i in rng.permutation(len(texts))]
    vectors = rng.normal(size=(len(texts), width)).astype(np.float32)
    file = TextVectors("v.npy", hash_texts(texts), Rows(vectors))
    return file, dict(zip(texts, vectors, strict=True))


def batches(tmp_path, teacher=None, scores=True):
    examples = [
        Example(
            QUERIES[i],
            (DOCUMENTS[i][0],),
            tuple(DOCUMENTS[i][1:]),
            document_scores=tuple(10.0 * i + np.arange(4.0)) if scores else (),
        )
        for i in range(6)
    ]
    source = Source(examples, 2, 1.0, {"query": "find ", "document": ""})
    return make_pair_batches(
        {"x": source},
        train_tokenizer(QUERIES, 60),
        batch_size=4,
        max_length=16,
        seed=0,
        cache=tmp_path,
        teacher=teacher,
    )


def read_batch(batch):
    """The query and the documents of each pair, by their hashes."""
    names = {tuple(h): t for t in QUERIES for h in hash_texts([t]).tolist()}
    names |= {
        tuple(h): t for d in DOCUMENTS for t in d for h in hash_texts([t]).tolist()
    }
    queries = [names[tuple(h)] for h in batch.labels.query_id.tolist()]
    return queries, [names[tuple(h)] for h in batch.labels.document_id.tolist()]


def test_vectors_and_scores_are_those_of_the_texts(tmp_path):
    flat = [text for texts in DOCUMENTS for text in texts]
    queries, of_query = file_of(QUERIES)
    (first, of_first), (second, of_second) = file_of(flat, 3, 1), file_of(flat, 2, 2)
    pairs = batches(tmp_path, Teacher((queries,), (first, second)))
    for step in range(3):
        labels = pairs(step).labels
        texts = read_batch(pairs(step))
        np.testing.assert_array_equal(
            labels.query_vector, [of_query[text] for text in texts[0]]
        )
        # Two teachers: each is normalized, then both together
        both = [
            np.concatenate([v / np.linalg.norm(v) for v in (of_first[t], of_second[t])])
            for t in texts[1]
        ]
        np.testing.assert_allclose(
            labels.document_vector, np.array(both) / np.sqrt(2), rtol=1e-5
        )
        numbers = [
            [10.0 * i + d.index(t) for i, d in enumerate(DOCUMENTS) if t in d][0]
            for t in texts[1]
        ]
        np.testing.assert_array_equal(labels.score, np.reshape(numbers, (4, 3)))


def test_without_a_teacher_there_are_no_labels_of_one(tmp_path):
    labels = batches(tmp_path, scores=False)(0).labels
    assert labels.score is labels.query_vector is labels.document_vector is None


def test_missing_texts_are_counted_and_the_first_is_named(tmp_path):
    flat = [text for texts in DOCUMENTS for text in texts]
    file, _ = file_of(flat[:9] + flat[11:])
    message = (
        "data 'x': teacher: v.npy has no vector of 2 of the source's 24 documents; "
        "the first is 'document 2 1'"
    )
    with pytest.raises(ValueError, match=message):
        batches(tmp_path, Teacher(documents=(file,)))
    file, _ = file_of(QUERIES[1:])
    with pytest.raises(ValueError, match="1 of the source's 6 queries; .* 'query 0'"):
        batches(tmp_path, Teacher(queries=(file,)))


def test_rows_are_found_in_any_order():
    hashes = np.array([[5, 1], [2, 9], [5, 1], [2, 3]], np.uint32)
    queries = np.array([[2, 3], [5, 1], [2, 4], [9, 9], [0, 0]], np.uint32)
    assert find_rows(hashes, queries).tolist() == [3, 0, -1, -1, -1]
    assert find_rows(hashes[:0], queries).tolist() == [-1] * 5
