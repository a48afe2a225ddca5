"""Bitext mining: finds the translations of sentences by the nearest vector (mteb)."""

from pathlib import Path

import numpy as np

from research.config_sections import check_option
from research.eval.metrics import bootstrap, weighted_mean
from research.eval.tasks.files import read_bitext, read_groups
from research.eval.tasks.splits import list_tables, name_files
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
        ValueError: A file is malformed, two files have one name, or the similarity is
            another one.
    """
    check_option("similarity", similarity, ("cosine", "dot"))
    files = find_pairs(data)
    pairs = {name: read_bitext(path) for name, path in files.items()}
    sizes = [len(first) for first, _ in pairs.values()]
    # Each file counts the same, however many rows it has: [rows of all files].
    weights = np.repeat(1 / np.array(sizes), sizes)
    rows = [f"{name}:{row}" for name in pairs for row in range(len(pairs[name][0]))]
    groups = _join_groups(files, sizes)

    def evaluate(embed: EmbedFn) -> TaskScores:
        results = {}
        for name, (first, second) in pairs.items():
            vectors = np.asarray(embed(first + second, "query"))  # [2N, D]
            a, b = np.split(vectors, 2)
            _, nearest = rank_documents(a, b, 1, similarity=similarity)  # [N, 1]
            results[name] = score_matches(nearest[:, 0])
        scores = {
            metric: float(
                np.mean([result[metric].mean() for result in results.values()])
            )
            for metric in ("f1", "accuracy", "precision")
        }
        values = [np.concatenate([result["f1"] for result in results.values()])]
        statistic = np.mean
        if len(set(sizes)) > 1:
            values, statistic = [*values, weights], weighted_mean
        scores |= bootstrap(values, statistic, samples=samples)
        if len(pairs) > 1:
            scores["files"] = {n: float(r["f1"].mean()) for n, r in results.items()}
        return TaskScores(
            {"main_score": scores["f1"], **scores},
            ItemValues(rows, tuple(values), statistic, groups=groups),
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


def _join_groups(files: dict[str, Path], sizes: list[int]) -> list[str] | None:
    """The groups of the rows of all files, which several may share; None for none."""
    numbers = [list(map(str, range(size))) for size in sizes]
    found = [read_groups(*file) for file in zip(files.values(), numbers, strict=True)]
    if not any(found):
        return None
    # In a file without the field, every row is a group of its own.
    return [
        group
        for path, rows, groups in zip(files.values(), numbers, found, strict=True)
        for group in groups or [f"{path.name}:{row} alone" for row in rows]
    ]


def find_pairs(data: str) -> dict[str, Path]:
    """{pair of languages: its file} of a file or a folder.

    Raises:
        FileNotFoundError: The folder has no file of rows.
        ValueError: Two files have one name.
    """
    path = Path(data).expanduser()
    if not path.is_dir():
        return name_files([path])
    files = list_tables(path)
    if not files:
        raise FileNotFoundError(f"{path} holds no file of translations")
    return files
