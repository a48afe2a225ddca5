"""What losses read of a teacher in the labels: its scores and its vectors."""

import jax
import jax.numpy as jnp

from research.losses.similarity import (
    PairVectors,
    own_document_scores,
    target_scores,
)
from research.transforms.normalize import to_float32
from research.types import Array, Labels


def teacher_pairs(labels: Labels, vectors: PairVectors) -> PairVectors:
    """A teacher's vectors of the rows of a batch, and of all its texts.

    Args:
        labels: Labels of the batch, with the vectors of queries and documents.
        vectors: The student's embeddings of b rows.

    Raises:
        ValueError: The labels lack vectors.
    """
    queries, documents = (
        _read_vectors(labels, name) for name in ("query_vector", "document_vector")
    )
    return PairVectors(
        queries=vectors.take_rows(queries),
        documents=take_teacher_documents(labels, vectors),
        all_queries=queries,
        all_documents=documents,
        rows=vectors.rows,
    )


def take_teacher_queries(labels: Labels, vectors: PairVectors) -> Array:
    """[b, E] a teacher's vectors of the queries of b rows.

    Raises:
        ValueError: The labels have none.
    """
    return vectors.take_rows(_read_vectors(labels, "query_vector"))


def take_teacher_documents(labels: Labels, vectors: PairVectors) -> Array:
    """[b*K, E] a teacher's vectors of the documents of b rows.

    Raises:
        ValueError: The labels have none.
    """
    return _take_documents(_read_vectors(labels, "document_vector"), vectors)


def student_texts(labels: Labels, vectors: PairVectors) -> tuple[Array, Array]:
    """What is compared with a teacher's vectors: queries [b, k], documents [b*K, k].

    These are the model's embeddings, or their projections if the labels have them.
    """
    if labels.query_projection is None:
        return to_float32(vectors.queries), to_float32(vectors.documents)
    queries = vectors.take_rows(to_float32(labels.query_projection))
    documents = _take_documents(to_float32(labels.document_projection), vectors)
    return queries, documents


def teacher_texts(labels: Labels) -> Array:
    """[B + B*K, E] a teacher's vectors of all queries and all documents of a batch.

    Raises:
        ValueError: The labels have none.
    """
    names = ("query_vector", "document_vector")
    return jnp.concatenate([_read_vectors(labels, name) for name in names])


def teacher_scores(labels: Labels, vectors: PairVectors, similarity: str) -> Array:
    """[b, K] a teacher's scores of each row's own documents.

    They are the labels' scores or, without any, similarities of the teacher's vectors.

    Args:
        labels: Labels of the batch.
        vectors: The student's embeddings of b rows.
        similarity: Name of the similarity of the teacher's vectors.

    Raises:
        ValueError: The labels have neither, or the scores are not one per document.
    """
    if labels.score is None and labels.document_vector is not None:
        queries = take_teacher_queries(labels, vectors)
        documents = take_teacher_documents(labels, vectors)
        return own_document_scores(queries, documents, similarity)
    shape = (len(vectors.all_queries), vectors.docs_per_query)
    return vectors.take_rows(target_scores(labels, shape))


def cut_teacher(teacher: Array, width: int) -> Array:
    """The first dimensions [N, k] of a teacher's vectors [N, E], as many as a size has.

    Raises:
        ValueError: The teacher's vectors have fewer.
    """
    if teacher.shape[1] < width:
        raise ValueError(
            f"the teacher's vectors have {teacher.shape[1]} dims and the model's "
            f"{width}: set objective.projection_width={teacher.shape[1]}"
        )
    return teacher[:, :width]


def _take_documents(documents: Array, vectors: PairVectors) -> Array:
    """The entries [b*K, E] of the rows' documents, of an array of all [B*K, E]."""
    width = documents.shape[1]
    grouped = documents.reshape(len(vectors.all_queries), -1, width)
    return vectors.take_rows(grouped).reshape(-1, width)


def _read_vectors(labels: Labels, name: str) -> Array:
    """The vectors of one side, float32 and without gradient."""
    array = getattr(labels, name)
    if array is None:
        side = "queries" if name == "query_vector" else "documents"
        raise ValueError(
            f"this loss needs a teacher's vectors of the {side}, but config.teacher "
            "gives none"
        )
    return jax.lax.stop_gradient(to_float32(jnp.asarray(array)))
