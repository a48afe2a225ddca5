"""A TFDS data set of the docstrings and code of the installed Python packages.

Real text with no download: what is installed decides what is in it. A package is in
"train" or in "test" as a whole, by a hash of its name.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import tensorflow_datasets as tfds

from research.data import docstrings

CACHE = "~/.cache/embax/tfds"
PER_PACKAGE = 2000  # pairs; a few large packages would be half of the set
TEST_SHARE = 8  # one package in so many is in "test"


class PyDocs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pairs of a function's docstring (query) and its code (document)."""

    # To be raised with any change of what docstrings.py picks or TEST_SHARE.
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folders: tuple[str, ...], **kwargs):
        self.folders = folders
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"package": text, "query": text, "document": text}
            ),
        )

    def _split_generators(self, dl_manager):
        train, test = splits(self.folders)
        return {"train": enumerate(train), "test": enumerate(test)}

    def _generate_examples(self):
        raise NotImplementedError  # the splits above are generators themselves


def load(split: str, *, cache: str = CACHE, folders: tuple[str, ...] = ()):
    """The data source of a split, made first if these packages were not seen before.

    Args:
        split: "train" or "test".
        cache: folder of TFDS data sets.
        folders: where packages are; the interpreter's own if empty.

    Raises:
        ValueError: there is no such split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"pydocs has no split {split!r}; it has train, test")
    folders = tuple(folders) or docstrings.installed()
    files = docstrings.python_files(folders)
    seen = hashlib.blake2b(repr((files, PER_PACKAGE)).encode(), digest_size=8)
    make = partial(
        PyDocs,
        folders=folders,
        data_dir=Path(cache).expanduser() / seen.hexdigest(),
        file_format="array_record",
    )
    builder = make()
    try:
        builder.download_and_prepare()
    except FileExistsError:  # another process has made the same set meanwhile
        builder = make()
    return builder.as_data_source(split)


def splits(folders: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """(train, test): the packages' pairs as examples, no text in two of them."""
    packages = docstrings.python_files(folders)
    seen: set[str] = set()
    out: tuple[list[dict], list[dict]] = ([], [])
    found = list(_read(packages))
    for test in (False, True):
        for pair in found:
            if docstrings.is_test(pair.package, TEST_SHARE) is not test:
                continue
            if pair.query not in seen and pair.document not in seen:
                seen.update((pair.query, pair.document))
                out[test].append(pair._asdict())
    return out


def _read(packages: dict) -> Iterator[docstrings.Pair]:
    """The pairs of all packages, in order; parsed by several processes."""
    workers = min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        most = [PER_PACKAGE] * len(packages)
        parsed = pool.map(
            docstrings.package_pairs, packages.keys(), packages.values(), most
        )
        for pairs in parsed:
            yield from pairs
