"""Kinds of embeddings, and the similarity of queries and documents of each kind.

An embedder gives one of three kinds: "dense" is one vector per text, an array [N, D];
"multi_vector" is several vectors per text, `MultiVectors`; "sparse" is a SciPy CSR
array [N, V] of non-negative weights of the tokens of a vocabulary. Other models have
one of ROW_KINDS, whose embeddings are `MultiVectors` of rows (`transforms.token_rows`).
"""

from collections.abc import Sequence

import numpy as np

from research.config_sections import check_option
from research.inference.multi_vectors import (
    SCORES_PER_STEP,
    count_vectors,
    get_texts,
    maxsim,
    split_texts,
    to_multi_vectors,
)
from research.inference.row_kinds import ROW_KINDS
from research.transforms.normalize import MIN_NORM, l2_normalize_rows
from research.types import MultiVectors

# {kind of the queries: names of the similarities, the usual one first}. Those of
# several vectors are sums over a query's vectors of the largest cosine with a vector of
# the document ("maxsim"; ColBERT, Khattab and Zaharia 2020), their mean, and sums of
# the largest dot products. Rows of tokens have one of the name of their kind.
SIMILARITIES = {
    "dense": ("cosine", "dot"),
    "multi_vector": ("maxsim", "meanmaxsim", "maxsim_dot"),
    "sparse": ("dot", "cosine"),
    **{name: (name,) for name in ROW_KINDS},
}
NAMES = tuple(dict.fromkeys(name for names in SIMILARITIES.values() for name in names))


def embedding_kind(embeddings) -> str:
    """The kind of embeddings: "dense", "multi_vector" or "sparse"."""
    if isinstance(embeddings, MultiVectors):
        return "multi_vector"
    # SciPy's sparse arrays, whose module is not imported for this question
    return "sparse" if hasattr(embeddings, "indptr") else "dense"


def count_texts(embeddings) -> int:
    """N, the number of texts of embeddings of any kind."""
    if isinstance(embeddings, MultiVectors):
        return embeddings.count
    return embeddings.shape[0]


def count_bytes(embeddings) -> int:
    """Bytes of the vectors of embeddings of any kind, without the numbers of texts."""
    kind = embedding_kind(embeddings)
    if kind == "sparse":
        return embeddings.data.nbytes + embeddings.indices.nbytes
    return embeddings.vectors.nbytes if kind == "multi_vector" else embeddings.nbytes


def get_width(embeddings) -> int:
    """The width of the vectors of embeddings of any kind."""
    if isinstance(embeddings, MultiVectors):
        return embeddings.vectors.shape[1]
    return embeddings.shape[1]


def check_similarity(queries, name: str) -> None:
    """Raises ValueError for a similarity that queries of this kind do not have."""
    kind = embedding_kind(queries)
    # Rows of tokens are several vectors, too
    if kind == "multi_vector" and name in ROW_KINDS:
        return
    if name not in SIMILARITIES[kind]:
        reason = "" if kind == "dense" else f" of {kind.replace('_', '-')} embeddings"
        check_option(f"similarity{reason}", name, SIMILARITIES[kind])


def take_texts(embeddings, numbers: Sequence[int]):
    """The embeddings of some texts, of any kind, in the order of their numbers."""
    if isinstance(embeddings, MultiVectors):
        return embeddings.take_texts(numbers)
    return embeddings[np.asarray(numbers)]


def similarity(queries, documents, name: str) -> np.ndarray:
    """Scores [Q, N] float32 of queries and documents of any kind.

    The documents of dense queries may have several vectors, such as those of chunks:
    the best one counts.

    Args:
        queries: Embeddings of Q queries.
        documents: Embeddings of N documents, of the same kind.
        name: One of SIMILARITIES of the kind.

    Raises:
        ValueError: Queries of this kind have no such similarity.
    """
    check_similarity(queries, name)
    if uses_unit_vectors(name):
        queries, documents = normalize_embeddings((queries, documents))
    # Products of rows, which SciPy makes of the weights that both have
    if embedding_kind(queries) == "sparse":
        return (queries @ documents.T).toarray()
    if embedding_kind(documents) == "dense":
        return np.asarray(queries) @ np.asarray(documents).T
    queries = to_multi_vectors(queries)
    # Blocks of documents, so that the scores of vectors fit the memory
    step = SCORES_PER_STEP // max(1, len(queries.vectors))
    score = ROW_KINDS[name].score if name in ROW_KINDS else maxsim
    blocks = [
        score(queries, get_texts(documents, start, stop))
        for start, stop in split_texts(documents.offsets, 0, documents.count, step)
    ]
    scores = np.concatenate(blocks, axis=1)
    return scores / count_vectors(queries) if name == "meanmaxsim" else scores


def score_candidates(query, documents, name: str) -> np.ndarray:
    """Scores [N] float32 of a single query and documents, of any kind.

    Those of equal dense documents are equal, which a matrix product, whose rounding
    depends on the position of a row, does not ensure.

    Args:
        query: Embeddings of one query.
        documents: Embeddings of N documents.
        name: As in `similarity`.
    """
    if embedding_kind(query) != "dense" or embedding_kind(documents) != "dense":
        return similarity(query, documents, name)[0]
    # A sum for each document, in the same order of additions
    check_similarity(query, name)
    if uses_unit_vectors(name):
        query, documents = normalize_embeddings((query, documents))
    return np.einsum("nd,d->n", documents, query[0])


def uses_unit_vectors(name: str) -> bool:
    """Whether a similarity is that of vectors of length 1."""
    return name not in ("dot", "maxsim_dot", *ROW_KINDS)


def normalize_embeddings(parts):
    """Embeddings of any kind with vectors of length 1, each of a sequence of them."""

    def normalize(x):
        if isinstance(x, MultiVectors):
            return x._replace(vectors=l2_normalize_rows(x.vectors))
        if embedding_kind(x) == "dense":
            return l2_normalize_rows(x)
        # Rows of a CSR array, without a dense copy
        norms = np.sqrt(x.multiply(x).sum(axis=1))
        scale = 1 / np.maximum(norms, MIN_NORM)
        rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        x = x.copy()
        x.data = (x.data * scale[rows]).astype(np.float32)
        return x

    return tuple(map(normalize, parts))
