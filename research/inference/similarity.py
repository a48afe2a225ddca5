"""Kinds of embeddings, and the similarity of queries and documents of each kind.

An embedder gives one of three kinds: "dense" is one vector per text, an array [N, D];
"multi_vector" is several vectors per text, `MultiVectors`; "sparse" is a SciPy CSR
array [N, V] of non-negative weights of the tokens of a vocabulary. A model of all three
has the kind "m3", whose embeddings are `MultiVectors` of rows (`transforms.m3_rows`).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from research.config_sections import check_option
from research.transforms.m3_rows import SPARSE_SHARE, split_rows
from research.transforms.normalize import MIN_NORM, l2_normalize_rows
from research.types import MultiVectors

# {kind of the queries: names of the similarities, the usual one first}. Those of
# several vectors are sums over a query's vectors of the largest cosine with a vector of
# the document ("maxsim"; ColBERT, Khattab and Zaharia 2020), their mean, and sums of
# the largest dot products. That of BGE-M3 is a sum of one of each kind
# (`score_m3`).
SIMILARITIES = {
    "dense": ("cosine", "dot"),
    "multi_vector": ("maxsim", "meanmaxsim", "maxsim_dot"),
    "sparse": ("dot", "cosine"),
    "m3": ("m3",),
}
NAMES = tuple(dict.fromkeys(name for names in SIMILARITIES.values() for name in names))
# Most scores of vectors that are in memory at a time.
SCORES_PER_STEP = 1 << 24


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
    # Rows of all three kinds are several vectors, too
    if kind == "multi_vector" and name == "m3":
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
    score = score_m3 if name == "m3" else maxsim
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


def maxsim(queries: MultiVectors, documents: MultiVectors) -> np.ndarray:
    """Sums over a query's vectors of the largest dot product with each document.

    All scores of vectors are in memory at once.

    Returns:
        [Q, N] float32.
    """
    scores = queries.vectors @ documents.vectors.T  # [query vectors, document vectors]
    # The vectors of a text follow one another: [query vectors, N], then [Q, N]
    scores = np.maximum.reduceat(scores, documents.offsets[:-1], axis=1)
    return np.add.reduceat(scores, queries.offsets[:-1], axis=0)


def score_m3(queries: MultiVectors, documents: MultiVectors) -> np.ndarray:
    """Sums of cosines, of products of weights and of mean best cosines (BGE-M3).

    Args:
        queries: Q queries, whose vectors are rows as in `transforms.m3_rows`.
        documents: N documents, the same.

    Returns:
        [Q, N] float32.

    Raises:
        ValueError: The vectors are no such rows.
    """
    from scipy.sparse import csr_array

    dense, tokens, terms = zip(
        *(_split_kinds(texts) for texts in (queries, documents)), strict=True
    )
    # Ids are below the width [V] of both sides
    width = 1 + max((int(ids.max()) for _, _, ids in terms if len(ids)), default=0)
    weights = [
        csr_array((values, (numbers, ids)), shape=(texts.count, width))
        for (values, numbers, ids), texts in zip(
            terms, (queries, documents), strict=True
        )
    ]
    # [Q, N] products of weights, and means of best cosines
    sparse = (weights[0] @ weights[1].T).toarray()
    best = maxsim(*tokens) / count_vectors(tokens[0])
    return dense[0] @ dense[1].T + np.float32(SPARSE_SHARE) * sparse + best


def _split_kinds(texts: MultiVectors) -> tuple:
    """Dense vectors, vectors of tokens, and (weights, texts, ids) of rows of N texts.

    Vectors are of length 1, and a token of the vocabulary has its largest weight.
    """
    vectors, ids, weights = split_rows(np.asarray(texts.vectors))
    if np.any(ids != np.round(ids)) or np.any(weights < 0):
        raise ValueError("these vectors are not those of the pooling m3")
    vectors, numbers = l2_normalize_rows(vectors), texts.text_numbers
    first = texts.offsets[:-1]
    # The first row is the text's, and also the token's if there is no other
    is_token = np.ones(len(vectors), bool)
    is_token[first] = np.diff(texts.offsets) == 1
    counts = np.bincount(numbers[is_token], minlength=texts.count)
    tokens = MultiVectors(vectors[is_token], np.cumsum([0, *counts]))
    # The last one of the weights of an id in a text, from small to large
    order = np.lexsort((weights, ids, numbers))
    order = order[weights[order] > 0]
    weights, numbers, ids = weights[order], numbers[order], ids[order].astype(int)
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (np.diff(numbers) != 0) | (np.diff(ids) != 0)
    return vectors[first], tokens, (weights[is_last], numbers[is_last], ids[is_last])


def uses_unit_vectors(name: str) -> bool:
    """Whether a similarity is that of vectors of length 1."""
    return name not in ("dot", "maxsim_dot", "m3")


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


def to_multi_vectors(embeddings) -> MultiVectors:
    """Embeddings of several vectors, or of one vector per text as such."""
    if isinstance(embeddings, MultiVectors):
        return embeddings
    return MultiVectors(np.asarray(embeddings), np.arange(len(embeddings) + 1))


def count_vectors(embeddings: MultiVectors) -> np.ndarray:
    """[N, 1] float32 number of vectors of each text."""
    return np.diff(embeddings.offsets)[:, None].astype(np.float32)


def get_texts(embeddings: MultiVectors, start: int, stop: int) -> MultiVectors:
    """The texts start ... stop - 1, whose vectors alone are read."""
    offsets = embeddings.offsets[start : stop + 1]
    vectors = embeddings.vectors[int(offsets[0]) : int(offsets[-1])]
    return MultiVectors(np.asarray(vectors, np.float32), offsets - offsets[0])


def split_texts(
    offsets: np.ndarray, start: int, stop: int, limit: int
) -> Iterator[tuple[int, int]]:
    """Yields ranges of the texts start ... stop - 1 with few enough vectors.

    Args:
        offsets: [N+1] as in `MultiVectors`.
        start: First text.
        stop: Text after the last one.
        limit: Most vectors of a range; a text with more is a range of its own.
    """
    while start < stop:
        end = int(np.searchsorted(offsets, offsets[start] + limit, side="right")) - 1
        end = min(max(end, start + 1), stop)
        yield start, end
        start = end
