"""Pair classification: whether two texts belong together, by a threshold (mteb)."""

import numpy as np

from research.eval.metrics import average_precision, bootstrap, pair_metrics
from research.eval.tasks.files import read_binary_pairs, read_groups
from research.eval.tasks.splits import find_split
from research.eval.tasks.sts import compare_pairs
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores


def pair_classification(
    *, data: str, split: str = "test", samples: int = 0
) -> Evaluator:
    """Separates pairs labeled 1 from pairs labeled 0 by the similarity of their texts.

    As in mteb, the scores are the best of all similarities.

    Args:
        data: A jsonl, tsv or csv file, plain or .gz, with the fields sentence1,
            sentence2 and label (0 or 1); or a folder of splits.
        split: Name of the file in a folder, without its ending.
        samples: Number of bootstrap samples of the pairs for a confidence interval; 0
            for no interval.

    Returns:
        embed -> {"main_score", "ap", "accuracy", "f1", "precision", "recall",
        "similarities"} in percent: each the maximum over the similarities, whose own
        scores are in "similarities". The main score is the average precision, mteb's
        max_ap; with `samples`, "low" and "high" are the ends of its 95 % interval.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is malformed, or all pairs have the same label; when the
            evaluator is called, a similarity is not finite.
    """
    path = find_split(data, split)
    first, second, labels = read_binary_pairs(path)
    if len(set(labels)) < 2:
        raise ValueError(f"{path}: all {len(labels)} pairs have the label {labels[0]}")
    names = list(map(str, range(len(labels))))
    groups = read_groups(path, names)

    def evaluate(embed: EmbedFn) -> TaskScores:
        predicted = compare_pairs(embed, first, second)
        compared = np.stack(list(predicted.values()), 1)  # [N, similarities]
        if not np.isfinite(compared).all():
            row = int(np.flatnonzero(~np.isfinite(compared).all(1))[0])
            raise ValueError(f"{path}: the similarity of pair {row} is not finite")
        by_similarity = {
            name: pair_metrics(values, labels) for name, values in predicted.items()
        }
        metrics = next(iter(by_similarity.values()))
        best = {
            name: max(scores[name] for scores in by_similarity.values())
            for name in metrics
        }
        interval = bootstrap((compared, labels), max_ap, samples=samples)
        scores = {"main_score": best["ap"], **best, **interval}
        scores["similarities"] = by_similarity
        items = ItemValues(names, (compared, labels), max_ap, groups=groups)
        return TaskScores(scores, items)

    return evaluate


def max_ap(similarities: np.ndarray, labels: np.ndarray) -> float:
    """The best average precision of S similarities, [N, S], of pairs labeled [N]."""
    return max(average_precision(values, labels) for values in similarities.T)
