"""Files of item values and of runs: what single queries, pairs or texts score."""

import pkgutil
from pathlib import Path
from typing import Any

import numpy as np

from research.atomic_write import atomic_write, read_json, write_json
from research.data.fields import Record
from research.data.files import read_records
from research.eval.metrics import Run, weighted_mean
from research.types import ItemValues

# Modules whose functions may be the statistic of a file.
_MODULES = ("numpy", "research.eval.")


def save_items(items: ItemValues, path: Path) -> bool:
    """Writes items as JSON, for `load_items`.

    Returns:
        Whether the statistic is a function that can be found again by its name, and the
        file has been written.
    """
    function = items.statistic
    name = f"{function.__module__}:{function.__qualname__}"
    if "<" in name or not name.startswith(_MODULES):
        return False
    values = [np.asarray(array).tolist() for array in items.values]
    content = {"statistic": name, "names": list(items.names), "values": values}
    if items.groups is not None:
        content["groups"] = list(items.groups)
    write_json(path, content)
    return True


def load_items(path: Path) -> ItemValues | None:
    """Reads what `save_items` wrote; None if there is no such file.

    Raises:
        ValueError: The file is not one that `save_items` wrote.
    """
    if not path.exists():
        return None
    content: dict[str, Any] = read_json(path)
    try:
        name, values = content["statistic"], tuple(map(np.asarray, content["values"]))
        if not name.startswith(_MODULES):
            raise ValueError(name)
        statistic, groups = pkgutil.resolve_name(name), content.get("groups")
        return ItemValues(content["names"], values, statistic, groups=groups)
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} holds no item values: {error}") from None


def write_item_table(items: ItemValues, path: Path) -> None:
    """Writes a tsv table with a row for each item: its name, and its numbers.

    The columns are "id" and "score", which may have a "weight", or "id", "prediction"
    and "truth"; an item with several numbers, such as those of several classifiers, has
    "score_1", "score_2" ...
    """
    # {title: N numbers}, one for each number of an item.
    columns = {}
    for title, array in zip(_name_columns(items), items.values, strict=True):
        table = np.asarray(array).reshape(len(items.names), -1)  # [N, n]
        if table.shape[1] == 1:
            columns[title] = table[:, 0].tolist()
        else:
            columns |= {f"{title}_{i}": x.tolist() for i, x in enumerate(table.T, 1)}
    rows = zip(items.names, *columns.values(), strict=True)
    with atomic_write(path) as draft, draft.open("w") as file:
        for row in [("id", *columns), *rows]:
            print(*row, sep="\t", file=file)


def read_item_table(path: Path, like: ItemValues) -> ItemValues:
    """Reads what `write_item_table` wrote of a model, for a comparison with another.

    Args:
        path: The table.
        like: The items of the other model on the same task.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such table, or one of another task.
    """
    records = [Record(f"{path} line {n}", values) for n, values in read_records(path)]
    # The names, and all other columns as numbers: [N, columns].
    names = [record.read_name("id") for record in records]
    titles = [title for title in records[0].values if title != "id"]
    numbers = np.array([[r.read_number(t) for t in titles] for r in records])
    # Columns to arrays of the other model's shapes.
    shapes = [np.shape(array)[1:] for array in like.values]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    if numbers.shape[1] != ends[-1]:
        raise ValueError(
            f"{path} has the columns {', '.join(titles)}, which are not those of this "
            "task; it should be a file that --scores wrote of the same task"
        )
    arrays = np.split(numbers, ends[:-1], axis=1)
    values = tuple(
        array.reshape(len(names), *shape)
        for array, shape in zip(arrays, shapes, strict=True)
    )
    return ItemValues(names, values, like.statistic, groups=like.groups)


def _name_columns(items: ItemValues) -> tuple[str, ...]:
    """Names of the arrays of items."""
    if len(items.values) == 1:
        return ("score",)
    if items.statistic is weighted_mean:
        return ("score", "weight")
    further = (f"truth_{i}" for i in range(2, len(items.values)))
    return ("prediction", "truth", *further)


def write_run(run: Run, path: Path, tag: str) -> None:
    """Writes a search as a TREC run: query id, Q0, document id, rank, score, tag.

    Documents are in trec_eval's order: of equal scores, the id that sorts last comes
    first.

    Args:
        run: {query id: {document id: score}}.
        path: File to write.
        tag: Name of the system; its spaces become underscores.

    Raises:
        ValueError: An id has a space, which the format cannot hold.
    """
    documents = {name for scores in run.values() for name in scores}
    for name in (*run, *documents):
        if len(name.split()) != 1:
            raise ValueError(
                f"the id {name!r} is empty or has a space, which a TREC run cannot hold"
            )
    tag = "_".join(tag.split())
    with atomic_write(path) as draft, draft.open("w") as file:
        for query, scores in run.items():
            best_first = sorted(scores.items(), key=lambda d: d[::-1], reverse=True)
            for rank, (document, score) in enumerate(best_first, 1):
                print(query, "Q0", document, rank, score, tag, file=file)
