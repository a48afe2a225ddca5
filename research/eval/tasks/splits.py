"""The files of a task by their names: splits, pairs of languages."""

from pathlib import Path

from research.data.files import READERS

# The split of a file that is given by itself, and that which a classification learns.
TEST, TRAIN = "test", "train"


def remove_ending(name: str) -> str:
    """The name of a file of rows or texts without its ending: a.b of a.b.jsonl.gz."""
    stem, _, ending = name.removesuffix(".gz").rpartition(".")
    return stem if f".{ending}" in (*READERS, ".txt") else name


def is_table(path: Path) -> bool:
    """Whether a path is a file that `read_records` reads, and is not hidden."""
    name = path.name.removesuffix(".gz")
    is_visible = not name.startswith(".")
    return is_visible and name.endswith(tuple(READERS)) and path.is_file()


def list_tables(folder: Path) -> dict[str, Path]:
    """{name without its ending: file} of the files of rows in a folder, by name.

    Raises:
        ValueError: Two files differ in their endings only.
    """
    return name_files(path for path in sorted(folder.iterdir()) if is_table(path))


def name_files(paths) -> dict[str, Path]:
    """{name without its ending: file} of files.

    Raises:
        ValueError: Two files have the same name, so that one would be lost.
    """
    files: dict[str, Path] = {}
    for path in paths:
        name = remove_ending(path.name)
        if name in files:
            raise ValueError(f"{files[name]} and {path} have the same name {name!r}")
        files[name] = path
    return files


def find_split(data: str | Path, split: str) -> Path:
    """The file of a split: `data` itself or, if it is a folder, SPLIT.jsonl in it.

    The file in a folder may have any ending that `read_records` reads.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There are several; or `data` is a file, and another split is named.
    """
    path = Path(data).expanduser()
    if not path.is_dir():
        if path.is_file() and split not in (TEST, remove_ending(path.name)):
            raise ValueError(
                f"{path} is a file, which has no split {split!r}; give the folder"
            )
        return path
    names = [f"{split}{ending}{gz}" for ending in READERS for gz in ("", ".gz")]
    present = [name for name in names if (path / name).is_file()]
    if not present:
        siblings = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"there is no {path / split}.jsonl(.gz); found {siblings}"
        )
    if len(present) > 1:
        raise ValueError(f"{path} holds {' and '.join(present)}; name the file")
    return path / present[0]


def find_train_and_test(data: str | Path, split: str) -> tuple[Path, Path]:
    """The files of the training split and of another split in a folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `data` is a file, or the split is the training split, so that a
            classifier would be scored on the texts that it has learned.
    """
    if Path(data).expanduser().is_file():
        raise ValueError(
            f"{data} is a file; a classification needs a folder with {TRAIN}.jsonl and "
            f"{TEST}.jsonl"
        )
    if split == TRAIN:
        raise ValueError(
            f"split is {split!r}, which a classification learns from; name another one"
        )
    return find_split(data, TRAIN), find_split(data, split)
