"""Classification: logistic regression on few vectors of each label (mteb)."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.eval.metrics import bootstrap
from research.eval.tasks.files import LabeledTexts, read_groups, read_labels
from research.eval.tasks.splits import find_split, find_train_and_test
from research.progress import show_note
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores

# mteb's seed of every task.
SEED = 42


def classification(
    *,
    data: str,
    split: str = "test",
    label: str = "label",
    samples_per_label: int = 8,
    experiments: int = 10,
    samples: int = 0,
) -> Evaluator:
    """Accuracy of a logistic regression that is fitted to a few vectors of each label.

    Each of several experiments draws other texts of the training split, as in mteb.

    Args:
        data: A folder with train.jsonl and the file of the split, in any format and
            plain or .gz, with the fields text and label.
        split: Name of the file that is classified, without its ending.
        label: Name of the field of the label, a text or a whole number.
        samples_per_label: Number of texts of each label that are drawn.
        experiments: Number of experiments.
        samples: Number of bootstrap samples of the texts for a confidence interval; 0
            for no interval.

    Returns:
        embed -> {"main_score", "accuracy", "f1", "precision", "recall", "f1_weighted",
        "precision_weighted"} in percent, and "ap" if the labels are 0 and 1: means over
        the experiments, whose accuracies are in "experiments". f1, precision and recall
        are means over labels. The main score is the accuracy; with `samples`, "low" and
        "high" are the ends of its 95 % interval.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, the training split has a single label, or there
            is only one split.
    """
    train, test = (
        read_labels(path, label) for path in find_train_and_test(data, split)
    )
    if train.labels.dtype.kind != test.labels.dtype.kind:
        # One file holds whole numbers, the other texts.
        train, test = (x._replace(labels=x.labels.astype(str)) for x in (train, test))
    check_labels(train, test, samples_per_label)
    # The texts of all experiments are embedded once.
    draws = draw_rows(train.labels, samples_per_label, experiments)
    rows = sorted(set().union(*draws))
    texts = [train.texts[row] for row in rows] + test.texts
    position_of = {row: position for position, row in enumerate(rows)}
    names = list(map(str, range(len(test.texts))))
    groups = read_groups(find_split(data, split), names)

    def evaluate(embed: EmbedFn) -> TaskScores:
        vectors = np.asarray(embed(texts, "query"))  # [rows + N, D]
        known, unknown = np.split(vectors, [len(rows)])
        predictions = []
        for draw in draws:
            x = known[[position_of[row] for row in draw]]
            predictions.append(predict_labels(x, train.labels[draw], unknown))
        results = [score_predictions(test.labels, labels) for labels in predictions]
        scores = {
            name: float(np.mean([result[name] for result in results]))
            for name in results[0]
        }
        # [N] share of the experiments in which a text is classified correctly
        correct = 100 * np.mean([test.labels == labels for labels in predictions], 0)
        scores |= bootstrap((correct,), np.mean, samples=samples)
        scores["experiments"] = [result["accuracy"] for result in results]
        return TaskScores(
            {"main_score": scores["accuracy"], **scores},
            ItemValues(names, (correct,), np.mean, groups=groups),
        )

    return evaluate


def draw_rows(labels: np.ndarray, per_label: int, experiments: int) -> list[list[int]]:
    """Draws rows with the same number of each label, for each experiment.

    As in mteb, each experiment shuffles the order of the one before by the same
    permutation.

    Args:
        labels: [N] labels.
        per_label: Number of rows of each label; fewer if there are no more.
        experiments: Number of draws.
    """
    order = list(range(len(labels)))
    values = labels.tolist()
    draws = []
    for _ in range(experiments):
        np.random.RandomState(SEED).shuffle(order)
        counts: Counter = Counter()
        draw = []
        for row in order:
            if counts[values[row]] < per_label:
                counts[values[row]] += 1
                draw.append(row)
        draws.append(draw)
    return draws


def predict_labels(x: np.ndarray, labels: np.ndarray, unknown: np.ndarray):
    """Labels [N] of vectors [N, D] by a regression on vectors [n, D] with labels [n].

    The settings are mteb's; on vectors as they are, it may stop before it converges.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=100, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, labels).predict(unknown)


def score_predictions(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of predicted labels [N], in percent, as in mteb."""
    from sklearn import metrics

    scores = {"accuracy": metrics.accuracy_score(labels, predicted)}
    # Labels that are never predicted have a precision of 0.
    functions = {
        "f1": metrics.f1_score,
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
    }
    for name, function in functions.items():
        scores[name] = function(labels, predicted, average="macro", zero_division=0)
        weighted = function(labels, predicted, average="weighted", zero_division=0)
        scores[f"{name}_weighted"] = weighted
    if set(labels.tolist()) == {0, 1}:
        scores["ap"] = metrics.average_precision_score(labels, predicted)
    return {name: 100 * float(score) for name, score in scores.items()}


def check_labels(train: LabeledTexts, test: LabeledTexts, per_label: int) -> None:
    """Raises ValueError for a single label; and notes as `describe_labels`."""
    counts = Counter(train.labels.tolist())
    if len(counts) < 2:
        raise ValueError(
            f"{train.place}: all texts have the label {next(iter(counts))!r}; a "
            "classification needs two labels or more"
        )
    describe_labels(
        train.place, counts, test.place, set(test.labels.tolist()), per_label
    )


def describe_labels(
    train: str, counts: Mapping[Any, int], test: str, tested: set, per_label: int
) -> None:
    """Notes the labels with few texts in the training split, or none in either split.

    Args:
        train: Name of the file of the training split.
        counts: {label: number of its texts} there.
        test: Name of the file of the split that is classified.
        tested: Its labels.
        per_label: Number of texts of each label that an experiment draws.
    """
    unseen = sorted(tested - set(counts), key=str)
    if unseen:
        show_note(
            f"{test}: {len(unseen)} of {len(tested)} labels have no text in {train}, "
            f"such as {unseen[0]!r}; they are never predicted"
        )
    untested = sorted(set(counts) - tested, key=str)
    if untested:
        show_note(
            f"{train}: {len(untested)} of {len(counts)} labels have no text in {test}, "
            f"such as {untested[0]!r}"
        )
    rare = [label for label, count in counts.items() if count < per_label]
    if rare:
        show_note(
            f"{train}: {len(rare)} of {len(counts)} labels have fewer than {per_label} "
            f"texts, such as {rare[0]!r} with {counts[rare[0]]}"
        )
