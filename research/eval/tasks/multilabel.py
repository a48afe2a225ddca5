"""Multilabel classification: the labels of the nearest vectors (mteb)."""

import itertools
import warnings
from collections import Counter

import numpy as np

from research.eval.metrics import bootstrap
from research.eval.tasks.classification import SEED, describe_labels
from research.eval.tasks.files import read_groups, read_label_lists
from research.eval.tasks.splits import find_train_and_test
from research.eval.tasks.stratification import sample_stratified
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores

NEIGHBORS = 5


def multilabel(
    *,
    data: str,
    split: str = "test",
    label: str = "labels",
    samples_per_label: int = 8,
    experiments: int = 10,
    max_texts: int = 3_000,
    samples: int = 0,
) -> Evaluator:
    """Accuracy of sets of labels, by a vote of the five nearest vectors on each label.

    Each of several experiments draws other texts of the training split, as in mteb.

    Args:
        data: A folder with train.jsonl and the file of the split, in any format and
            plain or .gz, with the fields text and labels, a list.
        split: Name of the file that is classified, without its ending.
        label: Name of the field of the labels.
        samples_per_label: Number of texts with each label that are drawn, at least.
        experiments: Number of experiments.
        max_texts: Number of texts that are scored of a split with more, drawn by
            `sample_stratified` as in mteb; 0 for all.
        samples: Number of bootstrap samples of the texts for a confidence interval; 0
            for no interval.

    Returns:
        embed -> {"main_score", "accuracy", "f1", "lrap", "hamming"} in percent, means
        over the experiments: texts of which all labels are correct (the main score),
        the F1 averaged over labels, the average precision of the ranked labels, and the
        share of correct labels among those that a text has or is given. With
        `samples`, "low" and "high" are the ends of the main score's 95 % interval.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, the labels are too few, or there is only one
            split.
    """
    train_path, path = find_train_and_test(data, split)
    train_texts, train_labels = read_label_lists(train_path, label)
    test_texts, test_labels = read_label_lists(path, label)
    if not any(test_labels):
        raise ValueError(f"{path}: no text has a label")
    # Labels are texts unless all are numbers, which have another order.
    all_labels = itertools.chain(*train_labels, *test_labels)
    if len(set(map(type, all_labels))) > 1:
        train_labels = [list(map(str, row)) for row in train_labels]
        test_labels = [list(map(str, row)) for row in test_labels]
    # The texts of the split that are scored
    scored_rows = list(range(len(test_texts)))
    if 0 < max_texts < len(test_texts):
        scored_rows = sample_stratified(test_labels, max_texts, SEED)
        test_texts = [test_texts[row] for row in scored_rows]
        test_labels = [test_labels[row] for row in scored_rows]
    draws = draw_rows(train_labels, samples_per_label, experiments)
    if min(map(len, draws)) < NEIGHBORS:
        raise ValueError(
            f"{data}: {min(map(len, draws))} texts are drawn from the training split; "
            f"the vote needs {NEIGHBORS}"
        )
    rows = sorted(set().union(*draws))
    texts = [train_texts[row] for row in rows] + test_texts
    # Labels that no text of the split has do not count, as in mteb.
    columns = {name: i for i, name in enumerate(sorted(set().union(*test_labels)))}
    if len(columns) < 2:
        raise ValueError(
            f"{path}: the only label is {next(iter(columns))!r}; a classification "
            "needs two labels or more"
        )
    counts = Counter(itertools.chain(*train_labels))
    describe_labels(str(train_path), counts, str(path), set(columns), samples_per_label)
    train_matrix = mark_labels(train_labels, columns)
    test_matrix = mark_labels(test_labels, columns)
    names = list(map(str, scored_rows))
    groups = read_groups(path, names)

    def evaluate(embed: EmbedFn) -> TaskScores:
        vectors = np.asarray(embed(texts, "query"))  # [rows + N, D]
        known, unknown = np.split(vectors, [len(rows)])
        predictions = []  # [N, L] of each experiment
        for draw in draws:
            x = known[np.searchsorted(rows, draw)]
            predictions.append(predict_by_vote(x, train_matrix[draw], unknown))
        results = [score_label_sets(test_matrix, marks) for marks in predictions]
        scores = {
            name: float(np.mean([result[name] for result in results]))
            for name in results[0]
        }
        # [N] share of the experiments in which all labels of a text are correct
        exact = [(test_matrix == marks).all(1) for marks in predictions]
        correct = 100 * np.mean(exact, 0)
        scores |= bootstrap((correct,), np.mean, samples=samples)
        return TaskScores(
            {"main_score": scores["accuracy"], **scores},
            ItemValues(names, (correct,), np.mean, groups=groups),
        )

    return evaluate


def draw_rows(labels: list[list], per_label: int, experiments: int) -> list[list[int]]:
    """Draws rows until each label occurs often enough, for each experiment, as in mteb.

    Args:
        labels: N lists of labels.
        per_label: Number of rows with each label; fewer if there are no more.
        experiments: Number of draws.
    """
    rng = np.random.default_rng(SEED)
    draws = []
    for _ in range(experiments):
        order = list(range(len(labels)))
        rng.shuffle(order)
        counts: Counter = Counter()
        draw = []
        for row in order:
            if any(counts[name] < per_label for name in labels[row]):
                counts.update(labels[row])
                draw.append(row)
        draws.append(draw)
    return draws


def mark_labels(labels: list[list], columns: dict) -> np.ndarray:
    """Lists of labels as a matrix [N, L] of 0 and 1."""
    matrix = np.zeros((len(labels), len(columns)), np.int64)
    for row, names in enumerate(labels):
        matrix[row, [columns[name] for name in names if name in columns]] = 1
    return matrix


def predict_by_vote(x: np.ndarray, marks: np.ndarray, unknown: np.ndarray):
    """Labels [N, L] of vectors [N, D]: those that 3 of the 5 nearest of [n, D] have."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(NEIGHBORS).fit(x, marks).predict(unknown)


def score_label_sets(marks: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of predicted labels [N, L] of 0 and 1, in percent, as in mteb."""
    from sklearn import metrics

    with warnings.catch_warnings():
        # Of labels that are never predicted, F1 is 0.
        warnings.simplefilter("ignore")
        f1 = metrics.f1_score(marks, predicted, average="macro", zero_division=0)
    union = (marks | predicted).sum(1)
    common = (marks & predicted).sum(1)
    scores = {
        "accuracy": (marks == predicted).all(1).mean(),
        "f1": f1,
        "lrap": metrics.label_ranking_average_precision_score(marks, predicted),
        # A text without labels that is given none is correct.
        "hamming": np.where(union == 0, 1, common / np.maximum(union, 1)).mean(),
    }
    return {name: 100 * float(score) for name, score in scores.items()}
