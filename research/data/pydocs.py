"""A TFDS data set of the docstrings and code of the installed Python packages.

Real text without a download; its content depends on the packages that are installed. A
package belongs to "train" or to "test" as a whole, by a hash of its name.
"""

import ast
import hashlib
import os
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from research.file_lock import wait_for_lock

# Folders without code that was written for the package.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "_vendor"}
LARGEST = 1_000_000  # bytes; larger files are generated tables
# A docstring that starts like a sentence and holds no markup.
SENTENCE = re.compile(r"[A-Z][A-Za-z'-]* [^<>|=\\]*")


class DocstringPair(NamedTuple):
    """A function's description and its code, and its top-level package."""

    package: str
    query: str
    document: str


CACHE = "~/.cache/embax/tfds"
PER_PACKAGE = 2000  # pairs; without a limit few large packages would be half of the set
TEST_SHARE = 8  # one package in so many is in "test"


class PyDocs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pairs of a function's docstring (query) and its code (document)."""

    # Raise it with every change of `extract_pairs` or TEST_SHARE.
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
        train, test = make_splits(self.folders)
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
    folders = tuple(folders) or find_package_folders()
    files = find_python_files(folders)
    content = hashlib.blake2b(repr((files, PER_PACKAGE)).encode(), digest_size=8)
    data_dir = Path(cache).expanduser() / content.hexdigest()
    # One process builds the data set, others wait for it
    with wait_for_lock(data_dir.with_suffix(".lock")):
        builder = PyDocs(folders=folders, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    return builder.as_data_source(split)


def make_splits(folders: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """(train, test): the packages' pairs as records; no text occurs twice."""
    packages = find_python_files(folders)
    used: set[str] = set()
    train_and_test: tuple[list[dict], list[dict]] = ([], [])
    pairs = list(_parse_packages(packages))
    # Training comes first: a text of both splits stays in training.
    for test in (False, True):
        for pair in pairs:
            if is_test(pair.package, TEST_SHARE) is not test:
                continue
            if pair.query not in used and pair.document not in used:
                used.update((pair.query, pair.document))
                train_and_test[test].append(pair._asdict())
    return train_and_test


def _parse_packages(packages: dict) -> Iterator[DocstringPair]:
    """Yields the pairs of all packages in order; several processes parse them."""
    workers = min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        limits = [PER_PACKAGE] * len(packages)
        parsed = pool.map(
            extract_package_pairs, packages.keys(), packages.values(), limits
        )
        for pairs in parsed:
            yield from pairs


def find_package_folders() -> tuple[str, ...]:
    """Folders of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    return tuple(sorted({paths["stdlib"], paths["purelib"], paths["platlib"]}))


def find_python_files(folders: Iterable[str]) -> dict[str, list[tuple[str, int]]]:
    """{top-level package: [(path, size in bytes), ...]} of all Python files but tests.

    Packages are sorted by name, and the files of a package by a hash of their paths, so
    that the first files are a random sample.
    """
    packages: dict[str, list[tuple[str, int]]] = {}
    for folder in folders:
        for parent, children, names in os.walk(folder):
            children[:] = [c for c in children if c not in SKIPPED]
            # The top-level package: the first folder, or a module beside the packages.
            inside = os.path.relpath(parent, folder).split(os.sep)[0]
            for name in names:
                if name.endswith(".py"):
                    top = name if inside == os.curdir else inside
                    path = os.path.join(parent, name)
                    package_files = packages.setdefault(top.removesuffix(".py"), [])
                    package_files.append((path, os.path.getsize(path)))
    ordered = {}
    for package in sorted(packages):
        # The path to a package depends on the machine; the part from its name on does
        # not, and is hashed.
        ordered[package] = sorted(
            packages[package],
            key=lambda file, name=package: _hash_text(file[0][file[0].rindex(name) :]),
        )
    return ordered


def extract_package_pairs(
    package: str, files: list[tuple[str, int]], limit: int
) -> list[DocstringPair]:
    """The first `limit` pairs of a package's files; unreadable files are skipped."""
    pairs: list[DocstringPair] = []
    for path, size in files:
        if size > LARGEST:
            continue
        try:
            source = Path(path).read_text(encoding="utf-8")
            pairs.extend(
                DocstringPair(package, *pair) for pair in extract_pairs(source)
            )
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
            continue  # Python 2, templates, other encodings, deep expressions
        if len(pairs) >= limit:
            break
    return pairs[:limit]


def extract_pairs(source: str) -> Iterator[tuple[str, str]]:
    """Yields (first paragraph of the docstring, code without it) of each function.

    The paragraph must be an ASCII sentence of at least 4 words and of 20 to 400
    characters, and the code must have 40 to 4,000 characters; other functions are left
    out.

    Raises:
        SyntaxError, ValueError: The source is not Python of this version.
    """
    if '"""' not in source and "'''" not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(source)
    # Functions and methods, in the order of ast.walk.
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        query = " ".join(docstring.split("\n\n")[0].split())
        code = _cut_docstring(node, lines)
        if (
            20 <= len(query) <= 400
            and query.isascii()
            and query.count(" ") >= 3
            and SENTENCE.match(query)
            and 40 <= len(code) <= 4000
        ):
            yield query, code


def is_test(package: str, share: int) -> bool:
    """Whether a package is held out for testing: one package in `share` is."""
    return _hash_text(package) % share == 0


def _cut_docstring(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> str:
    """The function's code without its decorators and its docstring."""
    docstring = node.body[0]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(head + body)).strip()


def _hash_text(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
