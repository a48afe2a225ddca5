"""The evaluator for a file or folder of one's own, told by what is in it."""

from pathlib import Path

import ml_collections

from research.config_sections import section
from research.data.columns import parse_columns
from research.data.fields import Record
from research.data.files import STS_FIELDS, read_records
from research.eval.evaluators import EVALS
from research.eval.suites.tasks import find_task

# Names of the judgments of a BEIR folder, in the order in which they are looked for.
SPLITS = ("dev", "validation", "test")


def choose_dev_set(path: str, columns: str = "") -> ml_collections.ConfigDict:
    """The config section of the evaluator that fits a file or a folder.

    A folder is read as BEIR's, with the first of its SPLITS, or as that of another task
    (`find_task`). A file is evaluated as examples, by `columns` if its rows have them.

    Args:
        path: The file or the folder.
        columns: Names of the columns of the file that is trained on.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The folder has no judgments, or the file is malformed.
    """
    top = Path(path).expanduser()
    if top.is_dir():
        names = [file.name.removesuffix(".gz") for file in top.glob("qrels/*.tsv*")]
        for split in SPLITS:
            if f"{split}.tsv" in names:
                return section(EVALS, "retrieval", data=path, split=split, lexical=True)
        if not names and (arguments := find_task(top)):
            return section(EVALS, arguments.pop("task"), **arguments)
        found = ", ".join(sorted(names)) or "nothing"
        raise ValueError(
            f"{path} has no qrels/ of {', '.join(SPLITS)}, as a BEIR folder has, and "
            f"no test split of another task; found {found}"
        )
    # The first row decides.
    line, values = next(read_records(top))
    record = Record(f"{path} line {line}", values)
    if all(any(map(record.has, names)) for names in STS_FIELDS.values()):
        return section(EVALS, "sts", data=path)
    if columns:
        fields = parse_columns(columns)
        if not any(name in values for name in fields["query"]):
            columns = ""
    return section(EVALS, "examples", data=path, columns=columns)
