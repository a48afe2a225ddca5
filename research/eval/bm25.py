"""BM25, the lexical baseline that a trained model should be printed beside."""

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer


def bm25(
    queries: list[str],
    documents: list[str],
    k: int,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    chunk: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each query by BM25, as Lucene computes it.

    score = sum over query words of ln(1 + (N - df + 1/2) / (df + 1/2)) *
    tf / (tf + k1 * (1 - b + b * length / mean length)); Kamphuis et al. 2020, Table 1.
    k1 = 0.9 and b = 0.4 are those of the BEIR paper's baseline. Words are runs
    of letters and digits in lower case, so `read_file` is two; no stemming, no stop
    words.

    Args:
        queries: Q texts.
        documents: N texts.
        k: how many documents; at most N are returned.
        k1: saturation of the word count.
        b: how much of the length normalisation is applied.
        chunk: queries scored at a time; a chunk takes 8 * chunk * N bytes.

    Returns:
        scores [Q, k] float64 from best to worst, and documents' row numbers [Q, k].
    """
    words = CountVectorizer(token_pattern=r"(?u)[^\W_]+", dtype=np.float64)
    counts = words.fit_transform(documents).tocsr()
    length = np.asarray(counts.sum(1)).ravel()
    found = counts.astype(bool).sum(0)
    idf = np.log1p((counts.shape[0] - found + 0.5) / (found + 0.5)).A1
    saturation = k1 * (1 - b + b * length / max(length.mean(), 1e-9))
    row, column = counts.nonzero()
    weights = counts.data / (counts.data + saturation[row]) * idf[column]
    table = sparse.csr_matrix((weights, (row, column)), counts.shape).T.tocsr()
    asked = words.transform(queries)
    best = [
        _top(np.asarray((asked[i : i + chunk] @ table).todense()), k)
        for i in range(0, len(queries), chunk)
    ]
    scores, rows = zip(*best, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def _top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order
