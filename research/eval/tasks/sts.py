"""Semantic textual similarity (STS): similarities of pairs against human scores."""

from collections.abc import Sequence

import chex
import numpy as np

from research.config_sections import check_option
from research.data.files import read_sts
from research.eval.bertscore import bertscore
from research.eval.metrics import (
    bootstrap,
    check_spread,
    correlate_ranks,
    correlations,
)
from research.eval.tasks.files import read_groups
from research.eval.tasks.splits import find_split
from research.inference.similarity import SIMILARITIES as KINDS
from research.inference.similarity import (
    embedding_kind,
    normalize_embeddings,
    score_candidates,
    take_texts,
)
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator, ItemValues, MultiVectors, TaskScores

# So many pairs in a row do not happen to have scores of at most 1 in a range of 0 to 5.
MIN_BLOCK = 20


def sts(
    *, data: str, split: str = "test", samples: int = 0, similarity: str = "cosine"
) -> Evaluator:
    """Correlation of the similarities of sentence pairs with human scores.

    Both sentences are embedded as queries, because the task is symmetric.

    Args:
        data: A jsonl, tsv or csv file, plain or .gz, with the fields sentence1,
            sentence2 and score; or a folder of splits.
        split: Name of the file in a folder, without its ending.
        samples: Number of bootstrap samples of the pairs for a confidence interval; 0
            for no interval.
        similarity: One of SIMILARITIES, or of TOKEN_SIMILARITIES for a vector per
            token, such as "bertscore".

    Returns:
        embed -> {"main_score", "spearman", "pearson", "similarities"} in percent. The
        main score is Spearman's correlation; with `samples`, "low" and "high" are the
        ends of its 95 % interval. "similarities" holds both correlations for each
        similarity of the embeddings.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is malformed, all scores are equal, or it joins scores of
            two ranges; when the evaluator is called, all similarities are equal or one
            is not finite.
    """
    path = find_split(data, split)
    pairs = read_sts(path)
    return correlation(
        *(*pairs, str(path)),
        samples=samples,
        similarity=similarity,
        groups=read_groups(path, list(map(str, range(len(pairs[0]))))),
    )


def correlation(
    first: list[str],
    second: list[str],
    scores: list[float],
    place: str,
    *,
    samples: int = 0,
    similarity: str = "cosine",
    groups: Sequence[str] | None = None,
) -> Evaluator:
    """The evaluator of `sts`, for N pairs and their scores in memory.

    Args:
        first: N texts.
        second: N texts.
        scores: N human scores.
        place: Name of the data, for error messages.
        samples: As in `sts`.
        similarity: As in `sts`.
        groups: N groups of pairs that depend on each other; None for none.
    """
    check_option("similarity", similarity, list_pair_similarities())
    human = np.asarray(scores)  # [N]
    try:
        check_spread("human", human)
        check_range(human)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None

    def evaluate(embed: EmbedFn) -> TaskScores:
        predicted = compare_pairs(embed, first, second)
        check_option("similarity of these embeddings", similarity, predicted)
        main = predicted[similarity]  # [N]
        result = correlations(main, human)
        # A similarity that is the same for all pairs has no correlation.
        by_similarity = {
            name: correlations(values, human)
            for name, values in predicted.items()
            if np.ptp(values) > 0
        }
        interval = bootstrap((main, human), correlate_ranks, samples=samples)
        scores = {"main_score": result["spearman"], **result, **interval}
        scores["similarities"] = by_similarity
        names = list(map(str, range(len(human))))
        items = ItemValues(names, (main, human), correlate_ranks, groups=groups)
        return TaskScores(scores, items)

    return evaluate


def check_range(human: np.ndarray) -> None:
    """Raises ValueError if scores [N] are those of two files with different ranges.

    That is so if the scores at the start or at the end of the file are fractions up to
    1, while the others start below them and go to 4 or more. A file that is sorted by
    its scores is not like that.
    """
    for place, scores in (("first", human), ("last", human[::-1])):
        high = np.flatnonzero(scores > 1)
        size = int(high[0]) if len(high) else 0
        if size < MIN_BLOCK:
            continue
        block, others = scores[:size], scores[size:]
        is_fraction = ((block > 0) & (block < 1)).any()
        if is_fraction and others.max() >= 4 and others.min() < block.max():
            raise ValueError(
                f"the {place} {size:,} scores are in {block.min():g} ... "
                f"{block.max():g}, and the others in {others.min():g} ... "
                f"{others.max():g}; scale the scores of all pairs to one range"
            )


def list_pair_similarities() -> list[str]:
    """Names of the similarities of pairs, of all kinds of embeddings."""
    return list(dict.fromkeys(sum(PAIR_SIMILARITIES.values(), ())))


def compare_pairs(
    embed: EmbedFn, first: list[str], second: list[str]
) -> dict[str, np.ndarray]:
    """{similarity: [N] of the first and the second texts of N pairs}.

    All are embedded as queries, in one call, so that the embedder can batch them by
    length. Several vectors per text have other similarities than one.
    """
    x, count = embed([*first, *second], "query"), len(first)
    numbers = np.arange(2 * count)
    a, b = take_texts(x, numbers[:count]), take_texts(x, numbers[count:])
    kind = embedding_kind(x)
    if kind == "multi_vector":
        return compare_tokens(a, b)
    if kind == "sparse":
        cosines = normalize_embeddings((a, b))
        return {
            "cosine": compute_sparse_dots(*cosines),
            "dot": compute_sparse_dots(a, b),
        }
    return {name: compare(a, b) for name, compare in SIMILARITIES.items()}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a with the same row of b: [N, D], [N, D] -> [N].

    From the distance of the unit vectors, as in scikit-learn: it is exactly 1 for equal
    vectors, so that pairs of equal texts have equal scores.
    """
    difference = l2_normalize_rows(a) - l2_normalize_rows(b)
    return 1 - np.einsum("nd,nd->n", difference, difference) / 2


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot product of each row of a with the same row of b: [N, D], [N, D] -> [N]."""
    chex.assert_rank([a, b], 2)
    return np.einsum("nd,nd->n", a, b)


def compute_sparse_dots(a, b) -> np.ndarray:
    """As `dot`, of SciPy's CSR arrays [N, V]."""
    return np.asarray(a.multiply(b).sum(axis=1)).ravel()


def compare_tokens(a: MultiVectors, b: MultiVectors) -> dict[str, np.ndarray]:
    """{similarity: [N] of each text of a and the text of the same number of b}."""
    scores = bertscore(a, b)
    values = [maxsim_pairs(a, b, name) for name in KINDS["multi_vector"]]
    values += [scores.f1, scores.precision, scores.recall]
    values.append(bertscore(a, b, idf=True).f1)
    return dict(zip(TOKEN_SIMILARITIES, values, strict=True))


def maxsim_pairs(a: MultiVectors, b: MultiVectors, name: str) -> np.ndarray:
    """MaxSim of each text of a with the text of the same number of b: [N]."""
    pairs = ((take_texts(a, [i]), take_texts(b, [i])) for i in range(a.count))
    return np.array([score_candidates(*pair, name)[0] for pair in pairs])


# {name: similarity of the rows of two arrays}, those of sentence-transformers. A
# distance counts as its negative.
SIMILARITIES = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(1),
}
# Similarities of pairs of texts with a vector per token: MaxSim and BERTScore.
TOKEN_SIMILARITIES = (
    *KINDS["multi_vector"],
    *("bertscore", "bertscore_precision", "bertscore_recall", "bertscore_idf"),
)
# {kind of embeddings: names of the similarities of pairs}
PAIR_SIMILARITIES = {
    "dense": tuple(SIMILARITIES),
    "multi_vector": TOKEN_SIMILARITIES,
    "sparse": ("cosine", "dot"),
}
