"""Semantic textual similarity (STS): similarities of pairs against human scores."""

import chex
import numpy as np

from research.config_sections import check_option
from research.data.files import read_sts
from research.eval.metrics import bootstrap, check_spread, correlations, spearman
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator


def sts(*, data: str, samples: int = 0, similarity: str = "cosine") -> Evaluator:
    """Correlation of the similarities of sentence pairs with human scores.

    Both sentences are embedded as queries, because the task is symmetric.

    Args:
        data: A jsonl, tsv or csv file, plain or .gz, with the fields sentence1,
            sentence2 and score.
        samples: Number of bootstrap samples of the pairs for a confidence interval; 0
            for no interval.
        similarity: One of SIMILARITIES.

    Returns:
        embed -> {"main_score", "spearman", "pearson"} in percent. The main score is
        Spearman's correlation; with `samples`, "low" and "high" are the ends of its
        95 % interval.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is malformed, or all scores are equal; when the evaluator
            is called, all similarities are equal or one is not finite.
    """
    pairs = read_sts(data)
    return correlation(*pairs, data, samples=samples, similarity=similarity)


def correlation(
    first: list[str],
    second: list[str],
    scores: list[float],
    place: str,
    *,
    samples: int = 0,
    similarity: str = "cosine",
) -> Evaluator:
    """The evaluator of `sts`, for N pairs and their scores in memory.

    Args:
        first: N texts.
        second: N texts.
        scores: N human scores.
        place: Name of the data, for error messages.
        samples: As in `sts`.
        similarity: As in `sts`.
    """
    check_option("similarity", similarity, SIMILARITIES)
    human = np.asarray(scores)  # [N]
    try:
        check_spread("human", human)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        # One call, so that the embedder can batch all sentences by length: [2N, D].
        a, b = np.split(np.asarray(embed(first + second, "query")), 2)
        chex.assert_equal_shape([a, b])
        predicted = SIMILARITIES[similarity](a, b)  # [N]
        result = correlations(predicted, human)
        interval = bootstrap((predicted, human), spearman, samples=samples)
        interval = {name: 100 * bound for name, bound in interval.items()}
        return {"main_score": result["spearman"], **result, **interval}

    return evaluate


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a with the same row of b: [N, D], [N, D] -> [N]."""
    return dot(l2_normalize_rows(a), l2_normalize_rows(b))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot product of each row of a with the same row of b: [N, D], [N, D] -> [N]."""
    chex.assert_rank([a, b], 2)
    return np.einsum("nd,nd->n", a, b)


# {name: similarity of the rows of two arrays}, those of sentence-transformers. A
# distance counts as its negative.
SIMILARITIES = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(1),
}
