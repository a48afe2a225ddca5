"""Semantic textual similarity: does cosine order sentence pairs as people do?"""

from collections.abc import Callable

import numpy as np

from research.data.files import read_sts
from research.eval.scores import bootstrap, correlations, spearman
from research.structs import EmbedFn

Evaluator = Callable[[EmbedFn], dict[str, float]]


def sts(*, data: str) -> Evaluator:
    """Correlation of the cosine of sentence pairs with human scores.

    Both sentences are embedded as queries: the task is symmetric.

    Args:
        data: a jsonl, tsv or csv file, plain or .gz, with sentence1, sentence2, score.

    Returns:
        embed -> {"main_score", "spearman", "pearson", "low", "high"} in percent; the
        main score is Spearman's, "low" and "high" bound its 95 % confidence interval.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed.
    """
    first, second, scores = read_sts(data)
    given = np.asarray(scores)

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        a, b = np.split(np.asarray(embed(first + second, "query")), 2)
        predicted = cosine(a, b)
        result = correlations(predicted, given)
        low, high = bootstrap(np.stack([predicted, given], 1), spearman)
        interval = {"low": 100 * low, "high": 100 * high}
        return {"main_score": result["spearman"], **result, **interval}

    return evaluate


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a with the same row of b: [N, D], [N, D] -> [N]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-12)
