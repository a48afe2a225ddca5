"""BM25, the lexical baseline of a retrieval task (Robertson & Zaragoza 2009)."""

import numpy as np
import scipy


def bm25(
    queries: list[str],
    documents: list[str],
    k: int,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    chunk: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents for each query by BM25, in Lucene's variant.

    score = sum over query words of ln(1 + (N - df + 1/2) / (df + 1/2)) *
    tf / (tf + k1 * (1 - b + b * length / mean length)); Kamphuis et al. 2020, Table 1.
    The defaults k1 = 0.9 and b = 0.4 are those of the BEIR paper's baseline. Words are
    runs of letters and digits in lower case, so that `read_file` is two words. There is
    no stemming, and no stop words are removed.

    Args:
        queries: Q texts.
        documents: N texts.
        k: Number of documents per query; at most N are returned.
        k1: Saturation of the word count.
        b: Share of the length normalization that is applied, between 0 and 1.
        chunk: Number of queries scored at a time; takes 8 * chunk * N bytes.

    Returns:
        Scores [Q, k] float64 from best to worst, and document indices [Q, k].
    """
    # Imported here: it takes longer than all else that an evaluation imports
    from sklearn.feature_extraction.text import CountVectorizer

    # [N, W] word counts of the documents
    vectorizer = CountVectorizer(token_pattern=r"(?u)[^\W_]+", dtype=np.float64)
    counts = vectorizer.fit_transform(documents).tocsr()
    lengths = np.asarray(counts.sum(1)).ravel()
    # [W] inverse document frequency
    frequency = counts.astype(bool).sum(0)
    idf = np.log1p((counts.shape[0] - frequency + 0.5) / (frequency + 0.5)).A1
    # [W, N] weight of each word in each document, sparse
    saturation = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
    row, column = counts.nonzero()
    weights = counts.data / (counts.data + saturation[row]) * idf[column]
    word_weights = scipy.sparse.csr_matrix((weights, (column, row)), counts.shape[::-1])
    # [Q, N] scores for some queries at a time; only the k best are kept
    query_counts = vectorizer.transform(queries)
    best = [
        _top_k(np.asarray((query_counts[i : i + chunk] @ word_weights).todense()), k)
        for i in range(0, len(queries), chunk)
    ]
    scores, indices = zip(*best, strict=True)
    return np.concatenate(scores), np.concatenate(indices)


def _top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest scores of each row, and their columns; ties go to the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order
