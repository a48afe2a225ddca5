"""Losses of a teacher's scores and of its vectors, which are in the labels.

They are losses of scores, (PairScores of b rows, Labels) -> [b]; those of the relations
between texts are in `relations`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.contrastive import infonce
from research.losses.similarity import PairScores
from research.losses.teacher import (
    cut_teacher,
    student_texts,
    take_teacher_documents,
    take_teacher_queries,
    teacher_pairs,
    teacher_scores,
)
from research.transforms.normalize import l2_normalize
from research.types import Array, Labels

# Targets of a query's documents: the teacher's vectors of these documents, or that of
# the query, of which they are translations.
TARGETS = ("own", "query")


def teacher_kl(
    scores: PairScores,
    labels: Labels,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    documents: str = "own",
    teacher_similarity: str = "cosine",
) -> Array:
    """KL(softmax(teacher) || softmax(model)) over the scores of each query's documents.

    Over a query's own documents it is the distillation of a reranker's scores; over all
    documents of the batch, contrastive distillation. sentence-transformers' loss is
    this one times the square of the temperature.

    Args:
        scores: Similarities of b rows of the batch.
        labels: The teacher's scores [B, K], or its vectors.
        temperature: Divisor of the model's similarities.
        teacher_temperature: Divisor of the teacher's scores.
        documents: "own", or "batch" for all documents, which needs vectors.
        teacher_similarity: Similarity of the teacher's vectors: "cosine" or "dot".

    Returns:
        [b] float32 loss per query.

    Raises:
        ValueError: The labels lack what is needed, or a query has one document only.
    """
    check_option("documents", documents, ("own", "batch"))
    vectors = scores.vectors
    if documents == "own":
        if vectors.docs_per_query < 2:
            raise ValueError(
                "teacher_kl of a query's own documents needs hard negatives; "
                "documents='batch' compares all documents of the batch"
            )
        student = scores.own_documents  # [b, K]
        teacher = teacher_scores(labels, vectors, teacher_similarity)
    else:
        student = scores.query_document  # [b, B*K]
        pairs = teacher_pairs(labels, vectors)
        teacher = PairScores(pairs, teacher_similarity).query_document
    # [b] divergence of the two distributions over documents
    target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / teacher_temperature)
    prediction = jax.nn.log_softmax(student / temperature)
    return jnp.sum(jnp.exp(target) * (target - prediction), axis=1)


def margin_mse(
    scores: PairScores, labels: Labels, *, teacher_similarity: str = "cosine"
) -> Array:
    """Squared error of the differences between a positive's score and the negatives'.

    Hofstaetter et al. 2020 (MarginMSE), who use dot products: the difference has the
    scale of the teacher's scores.

    Args:
        scores: Similarities of b rows; only `own_documents` is used.
        labels: The teacher's scores [B, K], or its vectors.
        teacher_similarity: Similarity of the teacher's vectors: "cosine" or "dot".

    Returns:
        [b] float32, the mean over a query's hard negatives.

    Raises:
        ValueError: The labels lack what is needed, or there are no hard negatives.
    """
    vectors, student = scores.vectors, scores.own_documents  # [b, K]
    if vectors.docs_per_query < 2:
        raise ValueError("margin_mse needs hard negatives")
    teacher = teacher_scores(labels, vectors, teacher_similarity)
    # [b, K-1] differences of the teacher's scores, and the errors of the model's
    targets = teacher[:, :1] - teacher[:, 1:]
    errors = student[:, :1] - student[:, 1:] - jax.lax.stop_gradient(targets)
    return jnp.mean(jnp.square(errors), axis=1)


def backward_compatible(
    scores: PairScores, labels: Labels, *, temperature: float = 0.05
) -> Array:
    """InfoNCE of the model's queries against an older model's documents.

    For a weighted sum with InfoNCE, so that new queries search vectors that the older
    model has stored (backward-compatible training; BEBR, Gan et al. 2023).

    Args:
        scores: Similarities of b rows of the batch.
        labels: The older model's vectors, of the same width.
        temperature: Divisor of the similarities.

    Raises:
        ValueError: The labels lack vectors, or have those of another width.
    """
    vectors = scores.vectors
    count = vectors.docs_per_query * len(vectors.all_queries)
    shape = (count, vectors.documents.shape[1])
    # The older model's documents in place of the model's own, in their precision
    old = jax.lax.stop_gradient(teacher_pairs(labels, vectors))
    if old.all_documents.shape != shape:
        raise ValueError(
            f"the older model's documents are {list(old.all_documents.shape)}, and "
            f"the model's {list(shape)}: their vectors should have the same dims"
        )
    dtype = vectors.documents.dtype
    vectors = vectors._replace(
        documents=old.documents.astype(dtype),
        all_documents=old.all_documents.astype(dtype),
    )
    mixed = PairScores(vectors, scores.similarity)
    return infonce(mixed, labels, temperature=temperature)


def embedding_mse(
    scores: PairScores,
    labels: Labels,
    *,
    documents: str = "own",
    normalize: bool = False,
) -> Array:
    """Squared error of the vectors, averaged over dimensions and texts.

    At a size of k dimensions, the teacher's first k are the targets; a projection of
    the embeddings (`contrastive`'s projection_width) is the same at all sizes. With
    documents "query" it is multilingual distillation (Reimers and Gurevych 2020): a
    query and its translation get the vector of the query.

    Args:
        scores: Embeddings of b rows; similarities are not used.
        labels: The teacher's vectors.
        documents: Targets of the documents, one of TARGETS.
        normalize: Whether vectors are compared at length 1, as they are if a model ends
            in a normalization. Otherwise a teacher that does so asks for short vectors.

    Returns:
        [b] float32, the mean over a query and its documents.

    Raises:
        ValueError: The labels lack vectors, or these have fewer dims than the model's.
    """

    def compare(student: Array, teacher: Array) -> Array:  # [N, k] -> [N]
        if normalize:
            student, teacher = l2_normalize(student), l2_normalize(teacher)
        return jnp.mean(jnp.square(student - teacher), axis=1)

    return _compare_texts(compare, scores, labels, documents)


def embedding_cosine(
    scores: PairScores, labels: Labels, *, documents: str = "own"
) -> Array:
    """1 - cosine of each vector and the teacher's; arguments as in `embedding_mse`."""

    def compare(student: Array, teacher: Array) -> Array:  # [N, k] -> [N]
        return 1 - jnp.sum(l2_normalize(student) * l2_normalize(teacher), axis=1)

    return _compare_texts(compare, scores, labels, documents)


def _compare_texts(
    compare: Callable[[Array, Array], Array],
    scores: PairScores,
    labels: Labels,
    documents: str,
) -> Array:
    """[b] mean of a comparison of vectors over each query and its documents."""
    check_option("documents", documents, TARGETS)
    vectors = scores.vectors
    queries, own_documents = student_texts(labels, vectors)  # [b, k], [b*K, k]
    width = queries.shape[1]
    targets = cut_teacher(take_teacher_queries(labels, vectors), width)
    of_queries = compare(queries, targets)  # [b]
    # [b*K, k] targets of the documents
    if documents == "query":
        targets = jnp.repeat(targets, vectors.docs_per_query, axis=0)
    else:
        targets = cut_teacher(take_teacher_documents(labels, vectors), width)
    of_documents = compare(own_documents, targets)
    grouped = of_documents.reshape(len(of_queries), -1)  # [b, K]
    return jnp.mean(jnp.concatenate([of_queries[:, None], grouped], axis=1), axis=1)
