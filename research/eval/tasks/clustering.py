"""Clustering: whether k-means finds the labels of texts; the V-measure (mteb)."""

import random
import warnings

import numpy as np

from research.eval.metrics import bootstrap
from research.eval.tasks.classification import SEED
from research.eval.tasks.files import read_clusters
from research.eval.tasks.splits import find_split
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores


def clustering(
    *,
    data: str,
    split: str = "test",
    label: str = "",
    max_texts: int = 0,
    repetitions: int = 10,
    texts_per_repetition: int = 16_384,
    samples: int = 0,
) -> Evaluator:
    """V-measure of the clusters of mini-batch k-means, against the labels of the texts.

    As in mteb, each repetition clusters texts that are drawn with replacement. Texts
    with several labels, from the coarsest to the finest, are clustered by each. Rows
    that are sets of texts of their own are clustered once each, as in mteb's older
    tasks.

    Args:
        data: A jsonl, tsv or csv file, plain or .gz, with the fields text (or
            sentences) and label (or labels); or a folder of splits.
        split: Name of the file in a folder, without its ending.
        label: Name of the field of the label; "" for label or labels.
        max_texts: Number of texts that are embedded, drawn at random; 0 for all. Most
            tasks of mteb take 2,048.
        repetitions: Number of repetitions.
        texts_per_repetition: Number of texts drawn in each.
        samples: Number of bootstrap samples of the sets for a confidence interval, if
            the rows are sets; 0 for no interval.

    Returns:
        embed -> {"main_score", "v_measure", "v_measure_std", "ami", "ami_std"} in
        percent: mean and standard deviation over levels and repetitions, and for
        several levels "levels", the mean V-measure of each; or, for rows that are sets,
        {"main_score", "v_measure", "v_measure_std"} over the sets.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is malformed, or all texts have the same label.
    """
    path = find_split(data, split)
    texts, labels, sets = read_clusters(path, label)
    if sets:
        if all(len(set(names)) < 2 for _, names in sets):
            raise ValueError(f"{path}: no set of texts has two labels")
        return _set_evaluator(sets, samples)
    levels = stack_levels(labels)
    for level, names in enumerate(levels):
        # Texts without a label at this level do not count.
        classes = np.unique(names[has_label(names)]).tolist()
        if len(classes) < 2:
            found = "no text has a label"
            if classes:
                found = f"all texts have the label {classes[0]}"
            place = f" at level {level}" if len(levels) > 1 else ""
            raise ValueError(
                f"{path}: {found}{place}; a clustering needs two labels or more"
            )

    def evaluate(embed: EmbedFn) -> TaskScores:
        # mteb's generator draws the texts first, and then those of the repetitions.
        rng = random.Random(SEED)
        rows = list(range(len(texts)))
        if max_texts > 0:
            rows = rng.sample(rows, min(max_texts, len(texts)))
        vectors = np.asarray(embed([texts[row] for row in rows], "query"))  # [N, D]
        scores = []  # [levels][repetitions] of (V-measure, AMI)
        for names in levels:
            labeled = has_label(names[rows])
            x, y = vectors[labeled], names[rows][labeled]
            draws = repetitions, texts_per_repetition, rng
            scores.append(cluster_repeatedly(x, y, *draws))
        v_measure, ami = 100 * np.moveaxis(np.array(scores), -1, 0)
        result = {
            "main_score": float(v_measure.mean()),
            "v_measure": float(v_measure.mean()),
            "v_measure_std": float(v_measure.std()),
            "ami": float(ami.mean()),
            "ami_std": float(ami.std()),
        }
        if len(levels) > 1:
            result["levels"] = v_measure.mean(1).tolist()
        return TaskScores(result, None)

    return evaluate


# Stands for the label of a text that has none at a level.
NO_LABEL = -1


def stack_levels(labels: list[list]) -> list[np.ndarray]:
    """The labels [N] of each level, NO_LABEL for texts that lack it.

    With labels that are texts, such texts are a class of their own, as in mteb, where
    the number becomes a text.
    """
    depth = max(1, *map(len, labels))
    return [
        np.array([row[level] if level < len(row) else NO_LABEL for row in labels])
        for level in range(depth)
    ]


def has_label(labels: np.ndarray) -> np.ndarray:
    """Whether a text has a label at a level: [N] bool."""
    if labels.dtype.kind == "i":
        return labels != NO_LABEL
    return np.ones(len(labels), bool)


def cluster_repeatedly(
    vectors: np.ndarray,
    labels: np.ndarray,
    repetitions: int,
    count: int,
    rng: random.Random,
) -> list[tuple[float, float]]:
    """V-measure and AMI of the clusters of each repetition.

    Args:
        vectors: [N, D].
        labels: [N] labels; there are as many clusters as labels.
        repetitions: Number of repetitions.
        count: Number of vectors that each draws, with replacement.
        rng: Random generator of the draws.
    """
    from sklearn import cluster, metrics

    model = cluster.MiniBatchKMeans(
        n_clusters=len(np.unique(labels)),
        batch_size=512,
        init="k-means++",
        n_init=1,
        random_state=SEED,
    )
    scores = []
    for _ in range(repetitions):
        # Each repetition fits the model anew.
        rows = rng.choices(range(len(vectors)), k=count)
        clusters = _fit_clusters(model, vectors[rows])
        scores.append(
            (
                metrics.v_measure_score(labels[rows], clusters),
                metrics.adjusted_mutual_info_score(labels[rows], clusters),
            )
        )
    return scores


def _set_evaluator(sets: list[tuple[list[str], list]], samples: int) -> Evaluator:
    """The evaluator of sets of texts, each of which is clustered once."""
    texts = [text for members, _ in sets for text in members]
    ends = np.cumsum([len(members) for members, _ in sets])[:-1]

    def evaluate(embed: EmbedFn) -> TaskScores:
        from sklearn import cluster, metrics

        scores = []
        vectors = np.split(np.asarray(embed(texts, "query")), ends)
        for (_, labels), x in zip(sets, vectors, strict=True):
            if (count := len(set(labels))) < 2:
                scores.append(1.0)
                continue
            model = cluster.MiniBatchKMeans(
                n_clusters=count, batch_size=500, n_init="auto", random_state=SEED
            )
            scores.append(metrics.v_measure_score(labels, _fit_clusters(model, x)))
        v_measure = 100 * np.array(scores)  # [sets]
        result = {
            "main_score": float(v_measure.mean()),
            "v_measure": float(v_measure.mean()),
            "v_measure_std": float(v_measure.std()),
            **bootstrap((v_measure,), np.mean, samples=samples),
        }
        names = list(map(str, range(len(sets))))
        return TaskScores(result, ItemValues(names, (v_measure,), np.mean))

    return evaluate


def _fit_clusters(model, vectors: np.ndarray) -> np.ndarray:
    """The cluster [N] of each vector [N, D]."""
    with warnings.catch_warnings():
        # Of vectors that are equal, k-means finds fewer clusters.
        warnings.simplefilter("ignore")
        return model.fit_predict(vectors)
