"""Summarization: grades machine summaries by similarity to human ones (mteb)."""

import numpy as np

from research.eval.metrics import bootstrap, correlations
from research.eval.tasks.files import read_groups, read_summaries
from research.eval.tasks.splits import find_split
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores


def summarization(*, data: str, split: str = "test", samples: int = 0) -> Evaluator:
    """Correlation of grades of machine summaries with their similarity to human ones.

    The predicted grade of a machine summary is its similarity to the nearest human
    summary of the same text. Texts for which all grades or predictions are equal are
    left out, as in mteb.

    Args:
        data: A jsonl file, plain or .gz, with the fields human_summaries and
            machine_summaries, lists of texts, and relevance, a grade for each machine
            summary; or a folder of splits.
        split: Name of the file in a folder, without its ending.
        samples: Number of bootstrap samples of the texts for a confidence interval; 0
            for no interval.

    Returns:
        embed -> {"main_score", "cosine_spearman", "cosine_pearson", "dot_spearman",
        "dot_pearson"} in percent, means over the texts. The main score is
        cosine_spearman; with `samples`, "low" and "high" are the ends of its 95 %
        interval.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is malformed; when the evaluator is called, no text is
            left.
    """
    path = find_split(data, split)
    rows = read_summaries(path)
    human = [text for row in rows for text in row.human]
    machine = [text for row in rows for text in row.machine]
    human_ends = np.cumsum([len(row.human) for row in rows])
    machine_ends = np.cumsum([len(row.machine) for row in rows])
    groups = read_groups(path, list(map(str, range(len(rows)))))

    def evaluate(embed: EmbedFn) -> TaskScores:
        vectors = np.asarray(embed(human + machine, "query"))
        x, y = np.split(vectors, [len(human)])
        # The vectors of each text's summaries.
        xs, ys = np.split(x, human_ends[:-1]), np.split(y, machine_ends[:-1])
        numbers, per_text = [], []
        for number, row in enumerate(rows):
            scores = _correlate_text(xs[number], ys[number], np.array(row.relevance))
            if scores:
                numbers.append(number)
                per_text.append(scores)
        if not per_text:
            raise ValueError(
                f"{path}: every text has machine summaries of equal grades, or of "
                "equal similarities, which have no correlation"
            )
        # {metric: [texts]}
        columns = {n: np.array([s[n] for s in per_text]) for n in per_text[0]}
        means = {name: float(values.mean()) for name, values in columns.items()}
        main = columns["cosine_spearman"]
        interval = bootstrap((main,), np.mean, samples=samples)
        items = ItemValues(
            list(map(str, numbers)),
            (main,),
            np.mean,
            groups=None if groups is None else [groups[i] for i in numbers],
        )
        return TaskScores(
            {"main_score": means["cosine_spearman"], **means, **interval}, items
        )

    return evaluate


def _correlate_text(
    human: np.ndarray, machine: np.ndarray, grades: np.ndarray
) -> dict[str, float]:
    """Correlations of one text, by cosine and by dot product; {} if one is undefined.

    Args:
        human: [H, D] vectors of human summaries.
        machine: [M, D] vectors of machine summaries.
        grades: [M] grades of the latter.
    """
    pairs = {
        "cosine": (l2_normalize_rows(machine), l2_normalize_rows(human)),
        "dot": (machine, human),
    }
    # [M]; not by a matrix product, whose rounding depends on the position of a row, so
    # that equal summaries would differ.
    predictions = {
        name: np.einsum("md,hd->mh", x, y).max(1) for name, (x, y) in pairs.items()
    }
    if any(np.ptp(values) == 0 for values in (grades, *predictions.values())):
        return {}
    return {
        f"{name}_{kind}": score
        for name, values in predictions.items()
        for kind, score in correlations(values, grades).items()
    }
