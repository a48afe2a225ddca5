"""A TFDS data set of the docstrings and code of the installed Python packages.

Real text with no download: what is installed decides what is in it. A package is in
"train" or in "test" as a whole, by a hash of its name.
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
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "_vendor"}
LARGEST = 1_000_000  # bytes; larger files are generated tables
SENTENCE = re.compile(r"[A-Z][A-Za-z'-]* [^<>|=\\]*")


class DocstringPair(NamedTuple):
    """What a function does, in words and in code; `package` is its top-level one."""

    package: str
    query: str
    document: str


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
        train, test = make_splits(self.folders)
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
    folders = tuple(folders) or find_package_folders()
    files = find_python_files(folders)
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


def make_splits(folders: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """(train, test): the packages' pairs as examples, no text in two of them."""
    packages = find_python_files(folders)
    seen: set[str] = set()
    out: tuple[list[dict], list[dict]] = ([], [])
    found = list(_read(packages))
    for test in (False, True):
        for pair in found:
            if is_test(pair.package, TEST_SHARE) is not test:
                continue
            if pair.query not in seen and pair.document not in seen:
                seen.update((pair.query, pair.document))
                out[test].append(pair._asdict())
    return out


def _read(packages: dict) -> Iterator[DocstringPair]:
    """The pairs of all packages, in order; parsed by several processes."""
    workers = min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        most = [PER_PACKAGE] * len(packages)
        parsed = pool.map(
            extract_package_pairs, packages.keys(), packages.values(), most
        )
        for pairs in parsed:
            yield from pairs


def find_package_folders() -> tuple[str, ...]:
    """The folders of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    return tuple(sorted({paths["stdlib"], paths["purelib"], paths["platlib"]}))


def find_python_files(folders: Iterable[str]) -> dict[str, list[tuple[str, int]]]:
    """{top-level package: [(path, bytes), ...]} of all Python files but tests.

    Everything is sorted, except that a package's files are in the order of a hash of
    their names: the first of them are a fair sample.
    """
    packages: dict[str, list[tuple[str, int]]] = {}
    for folder in folders:
        for parent, children, names in os.walk(folder):
            children[:] = [c for c in children if c not in SKIPPED]
            inside = os.path.relpath(parent, folder).split(os.sep)[0]
            for name in names:
                if name.endswith(".py"):
                    top = name if inside == os.curdir else inside
                    path = os.path.join(parent, name)
                    found = packages.setdefault(top.removesuffix(".py"), [])
                    found.append((path, os.path.getsize(path)))
    ordered = {}
    for package in sorted(packages):
        found = packages[package]
        ordered[package] = sorted(found, key=lambda f: _hash(_tail(f[0], package)))
    return ordered


def extract_package_pairs(
    package: str, files: list[tuple[str, int]], most: int
) -> list[DocstringPair]:
    """The first `most` pairs of a package's files; unreadable files are passed over."""
    out: list[DocstringPair] = []
    for path, size in files:
        if size > LARGEST:
            continue
        try:
            source = Path(path).read_text(encoding="utf-8")
            out.extend(DocstringPair(package, *pair) for pair in extract_pairs(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
            continue  # Python 2, templates, other encodings, deep expressions
        if len(out) >= most:
            break
    return out[:most]


def extract_pairs(source: str) -> Iterator[tuple[str, str]]:
    """(first paragraph of the docstring, code without it) of a file's functions.

    Left out: paragraphs that are not an ASCII sentence of 4 words and 20 to 400
    characters, and functions that are a docstring only or over 4,000 characters.

    Raises:
        SyntaxError, ValueError: the source is not Python of this version.
    """
    if '"""' not in source and "'''" not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(source)
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        query = " ".join(docstring.split("\n\n")[0].split())
        code = _code(node, lines)
        if (
            20 <= len(query) <= 400
            and query.isascii()
            and query.count(" ") >= 3
            and SENTENCE.match(query)
            and 40 <= len(code) <= 4000
        ):
            yield query, code


def is_test(package: str, share: int) -> bool:
    """Whether a package is one of the 1 in `share` that are kept for testing."""
    return _hash(package) % share == 0


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The function's lines but for its decorators and its docstring."""
    docstring = node.body[0]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(head + body)).strip()


def _tail(path: str, package: str) -> str:
    return path[path.rindex(package) :]


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
