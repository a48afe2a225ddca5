"""`Scores`: what an evaluator returns, with the scores of single items behind them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from research.atomic_write import atomic_write
from research.data.fields import Record
from research.data.files import read_records
from research.eval.metrics import Run


class ItemScores(NamedTuple):
    """The scores of the N items of a task: its queries, pairs or texts.

    Attributes:
        names: Names of the items, such as the ids of queries or the numbers of pairs.
        columns: {name: [N] numbers}. The main score of the task is the mean of the
            first column, in percent, unless STATISTICS has these columns.
    """

    names: Sequence[str]
    columns: Mapping[str, np.ndarray]

    @property
    def is_mean(self) -> bool:
        """Whether the main score is the mean of the first column."""
        return tuple(self.columns) not in STATISTICS

    def compute_main_score(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The main score of a choice of the items, in percent.

        Args:
            rows: [..., n] indices of items, which may repeat; all items if left out.

        Returns:
            [...] main scores; nan where the statistic is not defined.
        """
        columns = [np.asarray(values)[rows] for values in self.columns.values()]
        if self.is_mean:
            return columns[0].mean(-1)
        return STATISTICS[tuple(self.columns)](*columns)


class Scores(dict[str, float]):
    """The scores of a task by their names, among them "main_score".

    Attributes:
        item_scores: The scores of the task's items; None for a task without items, such
            as a clustering.
        run: {query id: {document id: score}} of a search; None for other tasks.
    """

    def __init__(
        self,
        scores: Mapping[str, float],
        *,
        item_scores: ItemScores | None = None,
        run: Run | None = None,
    ):
        super().__init__(scores)
        self.item_scores, self.run = item_scores, run


def spearman_of_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis, in percent: [..., N] -> [...].

    It is nan where all values of a row are equal.
    """
    # [..., N] ranks, averaged over equal values, minus their mean.
    x, y = (scipy.stats.rankdata(values, axis=-1) for values in (x, y))
    x, y = (ranks - (ranks.shape[-1] + 1) / 2 for ranks in (x, y))
    squares = (x**2).sum(-1) * (y**2).sum(-1)
    with np.errstate(invalid="ignore"):
        return 100 * (x * y).sum(-1) / np.sqrt(squares)


def write_item_scores(item_scores: ItemScores, path: Path) -> None:
    """Writes a table with a row for each item, as tsv."""
    columns = [np.asarray(values).tolist() for values in item_scores.columns.values()]
    rows = zip(item_scores.names, *columns, strict=True)
    with atomic_write(path) as temporary, temporary.open("w") as file:
        print("id", *item_scores.columns, sep="\t", file=file)
        for row in rows:
            print(*row, sep="\t", file=file)


def read_item_scores(path: Path) -> ItemScores:
    """Reads what `write_item_scores` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a table.
    """
    records = [Record(f"{path} line {n}", values) for n, values in read_records(path)]
    names = [record.read_name("id") for record in records]
    titles = [title for title in records[0].values if title != "id"]
    if not titles:
        raise ValueError(f"{path} has no column of scores beside id")
    columns = {t: np.array([r.read_number(t) for r in records]) for t in titles}
    return ItemScores(names, columns)


def write_run(run: Run, path: Path, tag: str) -> None:
    """Writes a search as a TREC run: query id, Q0, document id, rank, score, tag.

    Documents are in trec_eval's order: of equal scores, the id that sorts last comes
    first.

    Args:
        run: {query id: {document id: score}}.
        path: File to write.
        tag: Name of the system, a word.

    Raises:
        ValueError: An id has a space, which the format cannot hold.
    """
    for name in (*run, *(name for documents in run.values() for name in documents)):
        if len(name.split()) != 1:
            raise ValueError(
                f"the id {name!r} has a space, which a TREC run cannot hold"
            )
    with atomic_write(path) as temporary, temporary.open("w") as file:
        for query, documents in run.items():
            best_first = sorted(documents.items(), key=lambda d: d[::-1], reverse=True)
            for rank, (document, score) in enumerate(best_first, 1):
                print(query, "Q0", document, rank, score, tag, file=file)


# {columns of item scores: the main score of their arrays [..., N] in percent, [...]}
STATISTICS: Mapping[tuple[str, ...], Callable[..., np.ndarray]] = {
    ("similarity", "score"): spearman_of_rows,
}
