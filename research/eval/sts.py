"""Semantic textual similarity: does cosine order sentence pairs as people do?"""

import numpy as np

from research.data.files import read_sts
from research.eval.metrics import bootstrap, correlations, spearman
from research.types import EmbedFn, Evaluator


def sts(*, data: str, samples: int = 0) -> Evaluator:
    """Correlation of the cosine of sentence pairs with human scores.

    Both sentences are embedded as queries: the task is symmetric.

    Args:
        data: a jsonl, tsv or csv file, plain or .gz, with sentence1, sentence2, score.
        samples: of the pairs, for a confidence interval; 0 for none.

    Returns:
        embed -> {"main_score", "spearman", "pearson"} in percent, and with samples
        "low" and "high"; the main score is Spearman's, its 95 % interval lies between
        these.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed.
    """
    first, second, scores = read_sts(data)
    given = np.asarray(scores)

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        a, b = np.split(np.asarray(embed(first + second, "query")), 2)
        predicted = cosine(a, b)
        result = correlations(predicted, given)
        pairs = np.stack([predicted, given], 1)
        interval = bootstrap(pairs, spearman, samples=samples)
        interval = {name: 100 * bound for name, bound in interval.items()}
        return {"main_score": result["spearman"], **result, **interval}

    return evaluate


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a with the same row of b: [N, D], [N, D] -> [N]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-12)
