"""Bitext mining: finds the translations of sentences by the nearest vector (mteb)."""

from pathlib import Path

import numpy as np

from research.data.files import READERS
from research.eval.metrics import bootstrap
from research.eval.tasks.files import read_bitext
from research.inference.search import rank_documents
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores


def bitext_mining(
    *, data: str, similarity: str = "cosine", samples: int = 0
) -> Evaluator:
    """Finds for each sentence1 its sentence2, among those of all rows of the file.

    Args:
        data: A jsonl, tsv or csv file, plain or .gz, with the fields sentence1 and
            sentence2; or a folder of such files, one for each pair of languages.
        similarity: "cosine", or "dot" for dot products of the model's vectors.
        samples: Number of bootstrap samples of the rows for a confidence interval; 0
            for no interval.

    Returns:
        embed -> {"main_score", "f1", "accuracy", "precision"} in percent. The main
        score is the F1 of the rows that are found, averaged over rows: less than the
        accuracy if a sentence2 is found several times. For a folder, the scores are
        means over its files, whose F1 are in "files". With `samples`, "low" and "high"
        are the ends of the main score's 95 % interval.

    Raises:
        FileNotFoundError: There is no such file, or none in the folder.
        ValueError: A file is malformed.
    """
    pairs = {path.name.split(".")[0]: read_bitext(path) for path in _list_files(data)}
    total = sum(len(first) for first, _ in pairs.values())

    def evaluate(embed: EmbedFn) -> TaskScores:
        results, items = {}, []
        for name, (first, second) in pairs.items():
            vectors = np.asarray(embed(first + second, "query"))  # [2N, D]
            a, b = np.split(vectors, 2)
            _, nearest = rank_documents(a, b, 1, similarity=similarity)  # [N, 1]
            results[name] = score_matches(nearest[:, 0])
            # Weights, by which the mean over all rows is the mean over files.
            items.append(results[name]["f1"] * total / (len(pairs) * len(first)))
        scores = {
            metric: float(
                np.mean([result[metric].mean() for result in results.values()])
            )
            for metric in ("f1", "accuracy", "precision")
        }
        values = np.concatenate(items)  # [rows of all files]
        scores |= bootstrap((values,), np.mean, samples=samples)
        if len(pairs) > 1:
            scores["files"] = {n: float(r["f1"].mean()) for n, r in results.items()}
        rows = [f"{name}:{row}" for name in pairs for row in range(len(pairs[name][0]))]
        return TaskScores(
            {"main_score": scores["f1"], **scores},
            ItemValues(rows, (values,), np.mean),
        )

    return evaluate


def score_matches(nearest: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of the rows that were found for rows 0, ..., N-1, in percent.

    They are those of scikit-learn with a class for each row, weighted equally.

    Args:
        nearest: [N] the row that was found for each row.

    Returns:
        {"f1", "accuracy", "precision"}: [N] of each class; recall equals accuracy.
    """
    hits = nearest == np.arange(len(nearest))
    # How often each row is found, for whichever row.
    counts = np.bincount(nearest, minlength=len(nearest))
    return {
        "f1": 100 * 2 * hits / (1 + counts),
        "accuracy": 100.0 * hits,
        "precision": 100 * hits / np.maximum(counts, 1),
    }


def _list_files(data: str) -> list[Path]:
    path = Path(data).expanduser()
    if not path.is_dir():
        return [path]
    endings = [f"{ending}{gz}" for ending in READERS for gz in ("", ".gz")]
    files = [p for p in sorted(path.iterdir()) if p.name.endswith(tuple(endings))]
    if not files:
        raise FileNotFoundError(f"{path} holds no file of {', '.join(endings)}")
    return files
