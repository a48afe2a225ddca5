import argparse
import ast
import inspect
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor as ThreadPool

import pytest

from research.data import docstrings, pydocs
from research.data.docstrings import (
    extract_package_pairs,
    extract_pairs,
    find_python_files,
    hash_packages,
    parse_packages,
)
from research.data.examples import Example
from research.data.pydocs import is_test
from research.data.sources import SOURCES

CODE = '''
class Box:
    """A box that holds things for a while."""

    @property
    def size(self) -> int:
        """Returns the number of things
        in the box.

        More about it.
        """
        # A comment stays.
        return len(self.things) + len(self.other)

    def short(self):
        """Too short."""
        return self.things

    def only_words(self):
        """Does nothing at all but say so."""

    def foreign(self):
        """Rückgabe der Dinge in der Kiste."""
        return [thing for thing in self.things]


async def fetch(box, count):
    \'\'\'Takes the first things out of a box.\'\'\'
    return [box.pop() for _ in range(count)]
'''
FUNCTION = '''
def first_{name}(values):
    """Returns the first {name} among the values."""
    return next(value for value in values if value.is_{name}())


def common(values):
    """Returns what is common to all values."""
    return set.intersection(*(set(value) for value in values))
'''


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    for number in range(12):
        (folder / f"pack{number}.py").write_text(FUNCTION.format(name=f"p{number}"))
    return folder


def test_a_set_without_tensorflow(tmp_path, folder, monkeypatch, capsys):
    options = {"cache": str(tmp_path / "tfds"), "folders": (str(folder),)}
    train, test = (pydocs.load(split, **options) for split in ("train", "test"))
    assert "tensorflow" not in sys.modules
    assert len(train) + len(test) == 12 + 1  # `common` is kept once
    assert len(test) > 0
    for split, data in ((False, train), (True, test)):
        for record in data:
            assert pydocs.is_test(record["package"].decode(), 8) is split
    packages = [{r["package"] for r in data} for data in (train, test)]
    assert not packages[0] & packages[1]
    record = next(r for r in train if b"first_p2(" in r["document"])
    assert record["query"] == b"Returns the first p2 among the values."
    assert record["document"].startswith(b"def first_p2(values):\n    return next")

    assert capsys.readouterr().out == ""  # a command's result goes there
    monkeypatch.setattr(pydocs, "make_splits", None)  # made once
    assert len(pydocs.load("train", **options)) == len(train)
    monkeypatch.setattr(pydocs, "find_package_folders", lambda: options["folders"])
    source = SOURCES["pydocs"](split="test", cache=options["cache"])
    assert len(source.examples) == len(test)
    assert all(isinstance(row, Example) and row.query for row in source.examples)
    few = SOURCES["pydocs"](split="train", limit=3, cache=options["cache"])
    assert few.examples == list(SOURCES["pydocs"](cache=options["cache"]).examples)[:3]
    assert few.identity != source.identity


def test_other_packages_are_another_set(tmp_path, folder, monkeypatch):
    options = {"cache": str(tmp_path / "tfds"), "folders": (str(folder),)}
    before = sum(len(pydocs.load(split, **options)) for split in ("train", "test"))
    text = FUNCTION.format(name="more")
    (folder / "pack1.py").write_text(text + text.replace("common", "shared"))
    after = sum(len(pydocs.load(split, **options)) for split in ("train", "test"))
    assert after == before + 1


def test_splits_by_name():
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        pydocs.load("dev")


def test_pairs_of_a_file():
    assert list(extract_pairs(CODE)) == [
        (
            "Takes the first things out of a box.",
            "async def fetch(box, count):\n"
            "    return [box.pop() for _ in range(count)]",
        ),
        (
            "Returns the number of things in the box.",
            "def size(self) -> int:\n"
            "    # A comment stays.\n"
            "    return len(self.things) + len(self.other)",
        ),
    ]


@pytest.fixture
def module_folder(tmp_path):
    files = {
        "good/one.py": CODE,
        "good/two.py": CODE.replace("box", "bag"),
        "good/tests/three.py": CODE,
        "old/bad.py": 'print "python 2" """',
        "old/latin.py": 'x = """\udce9"""',
        "single.py": CODE.replace("box", "tin"),
    }
    for name, code in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, errors="surrogateescape")
    return tmp_path


def test_packages_and_their_files(module_folder):
    packages = find_python_files([str(module_folder)])
    assert list(packages) == ["good", "old", "single"]
    assert sorted(os.path.basename(p) for p, _ in packages["good"]) == [
        "one.py",
        "two.py",
    ]


def test_unreadable_files_are_passed_over(module_folder):
    packages = find_python_files([str(module_folder)])
    assert extract_package_pairs("old", packages["old"], 10) == []
    found = extract_package_pairs("good", packages["good"], 10)
    assert len(found) == 4
    assert {pair.package for pair in found} == {"good"}
    assert extract_package_pairs("good", packages["good"], 3) == found[:3]


def test_one_package_in_so_many_is_for_testing():
    chosen = [is_test(f"package{i}", 8) for i in range(800)]
    assert 70 < sum(chosen) < 130
    assert chosen == [is_test(f"package{i}", 8) for i in range(800)]


def test_a_new_package_costs_its_own_parse_only(folder, tmp_path, monkeypatch):
    cache = tmp_path / "pairs"
    before = list(parse_packages(find_python_files([str(folder)]), cache))
    files = set(cache.iterdir())
    monkeypatch.setattr(
        docstrings, "ProcessPoolExecutor", lambda *a, **k: ThreadPool(1)
    )
    parsed = []

    def extract(package, *arguments):
        parsed.append(package)
        return extract_package_pairs(package, *arguments)

    monkeypatch.setattr(docstrings, "extract_package_pairs", extract)
    (folder / "pack99.py").write_text(FUNCTION.format(name="p99"))
    after = list(parse_packages(find_python_files([str(folder)]), cache))
    assert parsed == ["pack99"]
    assert [pair for pair in after if pair.package != "pack99"] == before
    assert set(cache.iterdir()) > files and len(after) == len(before) + 2


def test_packages_are_the_same_in_another_place(module_folder, tmp_path_factory):
    # A file that pip writes for an editable package, with its path
    finder = "__editable___embax_0_2_0_finder.py"
    (module_folder / finder).write_text(f"MAPPING = {str(module_folder)!r}")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(module_folder, elsewhere)
    (elsewhere / finder).write_text(f"MAPPING = {str(elsewhere)!r}")
    first, second = (
        hash_packages(find_python_files([str(f)])) for f in (module_folder, elsewhere)
    )
    assert first == second
    with (elsewhere / "good" / "one.py").open("a") as file:
        file.write("# a comment")
    changed = hash_packages(find_python_files([str(elsewhere)]))
    assert {name for name in first if changed[name] != first[name]} == {"good"}


def test_functions_come_in_the_order_of_a_walk_over_all_nodes():
    source = inspect.getsource(argparse) + CODE
    tree = ast.parse(source)
    names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    walked = docstrings.walk_statements(tree)
    assert [n.name for n in walked if isinstance(n, ast.FunctionDef)] == names
    assert len(names) > 50
