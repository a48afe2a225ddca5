"""Loaders of data sets as training examples: TFDS, the Hugging Face hub, pydocs."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.data.examples import Example, LoadedExamples
from research.data.fields import Record

CHUNK = 1024  # records read at once


@dataclass(frozen=True)
class LazyExamples(Sequence):
    """Examples that are converted from a data set's records when they are read.

    Attributes:
        name: Name of the data set, for error messages.
        data: Sequence of records, {column: value}.
        convert: Function from a Record to an Example.
    """

    name: str
    data: Any
    convert: Callable[[Record], Example]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        if isinstance(index, slice):
            indices = list(range(*index.indices(len(self))))
            rows = self.data.__getitems__(indices)
            return list(map(self._convert_row, indices, rows))
        return self._convert_row(index, self.data[index])

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def _convert_row(self, index: int, values: Mapping[str, Any]) -> Example:
        return self.convert(Record(f"data set {self.name!r} row {index}", values))


def load_pydocs(
    *, split: str = "train", limit: int = 0, cache: str = ""
) -> LoadedExamples:
    """Pairs of docstring and code, from the functions of installed Python packages.

    Args:
        split: "train" or "test", which share no package.
        limit: Number of pairs to use; 0 for all of them.
        cache: Folder of TFDS data sets; ~/.cache/embax/tfds if empty.
    """
    from research.data import pydocs

    cache = cache or pydocs.CACHE
    data = pydocs.load(split, cache=cache)
    convert = functools.partial(_convert_record, query="query", document="document")
    examples = LazyExamples("pydocs", data, convert)
    # The folder's name is a hash of the installed packages, the same on every machine.
    folder = Path(data.dataset_info.data_dir)
    identity = f"{folder.relative_to(Path(cache).expanduser())} {split}"
    if limit:
        examples, identity = examples[:limit], f"{identity} {limit}"
    return LoadedExamples(examples, identity=identity)


def load_tfds(
    *,
    dataset: str,
    split: str,
    query: str,
    document: str,
    negatives: tuple[str, ...] = (),
    score: str = "",
    score_range: float = 1.0,
    data_dir: str = "",
) -> LoadedExamples:
    """Any TFDS data set of texts, with random access and without TensorFlow.

    Args:
        dataset: Name of the data set, optionally followed by a slash and its config.
        split: The split, or a part of it, such as "train[:10%]".
        query: Feature that holds the query.
        document: Feature that holds its positive.
        negatives: Features that hold hard negatives.
        score: Feature that holds the score, if there is one.
        score_range: Scores are divided by it.
        data_dir: Folder of TFDS data sets; the default folder of TFDS if empty.
    """
    import tensorflow_datasets as tfds

    data = tfds.data_source(
        dataset,
        split=split,
        data_dir=data_dir or None,
        builder_kwargs={"file_format": "array_record"},
    )
    columns = {"query": query, "document": document, "score": score}
    columns |= {"negatives": negatives, "score_range": score_range}
    return LoadedExamples(_convert_dataset(dataset, data, columns), len(negatives))


def load_hub(
    *,
    dataset: str,
    split: str,
    query: str,
    document: str,
    negatives: tuple[str, ...] = (),
    score: str = "",
    score_range: float = 1.0,
    subset: str = "",
) -> LoadedExamples:
    """A data set of the Hugging Face hub, or a local folder in one of its formats.

    Args:
        dataset: Name or path of the data set.
        split: Split of the data set.
        query: Column that holds the query.
        document: Column that holds its positive.
        negatives: Columns that hold hard negatives.
        score: Column that holds the score, if there is one.
        score_range: Scores are divided by it.
        subset: Config of the data set, if it has several.
    """
    data = _open_hub_split(dataset, subset, split)
    columns = {"query": query, "document": document, "score": score}
    columns |= {"negatives": negatives, "score_range": score_range}
    return LoadedExamples(_convert_dataset(dataset, data, columns), len(negatives))


def _open_hub_split(dataset: str, subset: str, split: str):
    """The records of a split, which are converted to examples when they are read."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ValueError(
            f"data set {dataset!r} needs the package datasets: pip install datasets"
        ) from None
    # Folders that `Dataset.save_to_disk` wrote, with one split or several.
    folder = Path(dataset).expanduser()
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(folder))
        if split not in splits:
            raise ValueError(
                f"data set {dataset!r} has no split {split!r}; it has "
                f"{', '.join(splits)}"
            )
        return splits[split]
    try:
        return datasets.load_dataset(dataset, subset or None, split=split)
    except DatasetsError as error:
        cause = error.__cause__ or error
        raise ValueError(f"data set {dataset!r} cannot be read: {cause}") from error


def _convert_record(
    record: Record,
    *,
    query: str,
    document: str,
    negatives: Sequence[str] = (),
    score: str = "",
    score_range: float = 1.0,
) -> Example:
    """Converts a record to an example; the arguments name the columns to use."""
    return Example(
        record.read_text(query),
        (record.read_text(document),),
        tuple(map(record.read_text, negatives)),
        record.read_number(score) / score_range if score else None,
    )


def _convert_dataset(dataset: str, data, columns: Mapping[str, Any]) -> LazyExamples:
    """The examples of a data set, after a check that it has the columns.

    Args:
        dataset: Name of the data set, for error messages.
        data: Sequence of records.
        columns: Keyword arguments of `_convert_record`.
    """
    if not len(data):
        raise ValueError(f"data set {dataset!r} has no rows in this split")
    # Check the names of the columns once, on the first record.
    known = set(data[0])
    used = (columns["query"], columns["document"], *columns["negatives"])
    missing = [name for name in (*used, columns["score"]) if name and name not in known]
    if missing:
        raise ValueError(
            f"data set {dataset!r} has no column {', '.join(missing)}; "
            f"found {', '.join(sorted(known))}"
        )
    return LazyExamples(dataset, data, functools.partial(_convert_record, **columns))
