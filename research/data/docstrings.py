"""Docstrings and code of the functions in installed Python packages.

Parsed packages are cached one by one, so that a new package costs only its own parse.
"""

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
import textwrap
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from research.atomic_write import atomic_write, to_json
from research.processes import stop_with_parent
from research.progress import show_progress

VERSION = "1.0.0"  # raise it with every change of `extract_pairs` or pydocs.TEST_SHARE
PER_PACKAGE = 2000  # pairs; without a limit few large packages would be half of the set
# Folders without code that was written for the package.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "_vendor"}
GENERATED = ("__editable__", "_sysconfigdata_")  # files with paths of this machine
LARGEST = 1_000_000  # bytes; larger files are generated tables
# A docstring that starts like a sentence and holds no markup.
SENTENCE = re.compile(r"[A-Z][A-Za-z'-]* [^<>|=\\]*")
# {top-level package: [(path, size in bytes), ...]}
PackageFiles = dict[str, list[tuple[str, int]]]


class DocstringPair(NamedTuple):
    """A function's description and its code, and its top-level package."""

    package: str
    query: str
    document: str


def find_package_folders() -> tuple[str, ...]:
    """Folders of the standard library and of the installed packages."""
    paths = sysconfig.get_paths()
    return tuple(sorted({paths["stdlib"], paths["purelib"], paths["platlib"]}))


def find_python_files(folders: Iterable[str]) -> PackageFiles:
    """{top-level package: [(path, size in bytes), ...]} of all Python files but tests.

    Packages are sorted by name, and the files of a package by a hash of their paths, so
    that the first files are a random sample.
    """
    packages: PackageFiles = {}
    for folder in folders:
        for parent, children, names in os.walk(folder):
            children[:] = [c for c in children if c not in SKIPPED]
            # The top-level package: the first folder, or a module beside the packages.
            inside = os.path.relpath(parent, folder).split(os.sep)[0]
            for name in names:
                if name.endswith(".py") and not name.startswith(GENERATED):
                    top = name if inside == os.curdir else inside
                    path = os.path.join(parent, name)
                    package_files = packages.setdefault(top.removesuffix(".py"), [])
                    package_files.append((path, os.path.getsize(path)))
    ordered = {}
    for package in sorted(packages):
        ordered[package] = sorted(
            packages[package],
            key=lambda file, name=package: hash_text(_get_inner_path(file[0], name)),
        )
    return ordered


def hash_packages(packages: PackageFiles) -> dict[str, str]:
    """{package: hash of what its pairs depend on}: its files, wherever they are."""
    context = VERSION, PER_PACKAGE, sys.version_info[:2]
    return {
        name: _hash_to_hex(
            repr((*context, name, [(_get_inner_path(p, name), n) for p, n in files]))
        )
        for name, files in packages.items()
    }


def parse_packages(packages: PackageFiles, cache: Path) -> Iterator[DocstringPair]:
    """Yields the pairs of all packages in order.

    Packages that are not in the cache are parsed, by several processes, and added.

    Args:
        packages: The packages and their files.
        cache: Folder with a file of pairs for each package.
    """
    paths = {
        name: cache / f"{name}-{digest}.json"
        for name, digest in hash_packages(packages).items()
    }
    missing = {n: packages[n] for n, path in paths.items() if not path.exists()}
    # The largest first, so that the processes end together.
    missing = dict(
        sorted(missing.items(), key=lambda item: -sum(size for _, size in item[1]))
    )
    if missing:
        phase = f"reading {len(missing):,} installed packages"
        with (
            ProcessPoolExecutor(
                min(8, os.cpu_count() or 1, len(missing)),
                get_context("spawn"),
                initializer=stop_with_parent,
            ) as pool,
            show_progress(phase, len(missing)) as advance,
        ):
            limits = [PER_PACKAGE] * len(missing)
            parsed = pool.map(
                extract_package_pairs, missing.keys(), missing.values(), limits
            )
            for name, pairs in zip(missing, parsed, strict=True):
                with atomic_write(paths[name]) as draft:
                    draft.write_text(to_json([pair[1:] for pair in pairs]))
                advance(1)
    for name, path in paths.items():
        for pair in json.loads(path.read_text()):
            yield DocstringPair(name, *pair)


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
    for node in walk_statements(tree):
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


def walk_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields the nodes that can hold functions, as `ast.walk` orders them.

    Expressions, which are most of the nodes, hold none.
    """
    queue = deque([tree])
    while queue:
        node = queue.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            # The body of a lambda or a conditional expression is no list.
            if isinstance(children := getattr(node, name, None), list):
                queue.extend(children)


def _cut_docstring(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> str:
    """The function's code without its decorators and its docstring."""
    docstring = node.body[0]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(head + body)).strip()


def _get_inner_path(path: str, package: str) -> str:
    """The part of a path from the package's name on, the same on every machine."""
    return path[path.rindex(package) :]


def _hash_to_hex(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def hash_text(text: str) -> int:
    """A number of 64 bits that is the same on every machine."""
    return int.from_bytes(bytes.fromhex(_hash_to_hex(text)), "little")
