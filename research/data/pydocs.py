"""A TFDS data set of the docstrings and code of the installed Python packages.

Real text without a download; its content depends on the packages that are installed. A
package belongs to "train" or to "test" as a whole, by a hash of its name.
"""

import contextlib
import hashlib
import io
from pathlib import Path

import tensorflow_datasets as tfds

from research.data.docstrings import (
    VERSION,
    PackageFiles,
    find_package_folders,
    find_python_files,
    hash_packages,
    hash_text,
    parse_packages,
)
from research.file_lock import wait_for_lock
from research.progress import show_progress

CACHE = "~/.cache/embax/tfds"
TEST_SHARE = 8  # one package in so many is in "test"


class PyDocs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pairs of a function's docstring (query) and its code (document)."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, packages: PackageFiles, pairs_cache: Path, **kwargs):
        self.packages, self.pairs_cache = packages, pairs_cache
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
        train, test = make_splits(self.packages, self.pairs_cache)
        return {"train": enumerate(train), "test": enumerate(test)}

    def _generate_examples(self):
        raise NotImplementedError  # the splits above are generators themselves


def load(split: str, *, cache: str = CACHE, folders: tuple[str, ...] = ()):
    """The data source of a split; built first if the installed packages have changed.

    Args:
        split: "train" or "test".
        cache: Folder of TFDS data sets.
        folders: Folders of packages; the interpreter's own if empty.

    Raises:
        ValueError: There is no such split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"pydocs has no split {split!r}; it has train, test")
    # The folder of the data set is named by a hash of the package files.
    packages = find_python_files(folders or find_package_folders())
    fingerprints = repr(hash_packages(packages))
    content = hashlib.blake2b(fingerprints.encode(), digest_size=8)
    data_dir = Path(cache).expanduser() / content.hexdigest()
    # One process builds the data set, others wait for it
    with wait_for_lock(data_dir.with_suffix(".lock")):
        builder = PyDocs(
            packages=packages,
            pairs_cache=data_dir.with_name("pairs"),
            data_dir=data_dir,
            file_format="array_record",
        )
        tfds.disable_progress_bar()  # there are five, with long names
        # TFDS prints its lines to stdout, where a command writes its result.
        with (
            show_progress("building pydocs from the installed packages, once"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder.download_and_prepare()
    return builder.as_data_source(split)


def make_splits(packages: PackageFiles, cache: Path) -> tuple[list[dict], list[dict]]:
    """(train, test): the packages' pairs as records; no text occurs twice."""
    used: set[str] = set()
    train_and_test: tuple[list[dict], list[dict]] = ([], [])
    pairs = list(parse_packages(packages, cache))
    # Training comes first: a text of both splits stays in training.
    for test in (False, True):
        for pair in pairs:
            if is_test(pair.package, TEST_SHARE) is not test:
                continue
            if pair.query not in used and pair.document not in used:
                used.update((pair.query, pair.document))
                train_and_test[test].append(pair._asdict())
    return train_and_test


def is_test(package: str, share: int) -> bool:
    """Whether a package is held out for testing: one package in `share` is."""
    return hash_text(package) % share == 0
