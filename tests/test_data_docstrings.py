import os

import pytest

from research.data.docstrings import (
    file_pairs,
    is_test,
    package_pairs,
    python_files,
)

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


def test_pairs_of_a_file():
    assert list(file_pairs(CODE)) == [
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
def folder(tmp_path):
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


def test_packages_and_their_files(folder):
    packages = python_files([str(folder)])
    assert list(packages) == ["good", "old", "single"]
    assert sorted(os.path.basename(p) for p, _ in packages["good"]) == [
        "one.py",
        "two.py",
    ]


def test_unreadable_files_are_passed_over(folder):
    packages = python_files([str(folder)])
    assert package_pairs("old", packages["old"], 10) == []
    found = package_pairs("good", packages["good"], 10)
    assert len(found) == 4
    assert {pair.package for pair in found} == {"good"}
    assert package_pairs("good", packages["good"], 3) == found[:3]


def test_one_package_in_so_many_is_for_testing():
    chosen = [is_test(f"package{i}", 8) for i in range(800)]
    assert 70 < sum(chosen) < 130
    assert chosen == [is_test(f"package{i}", 8) for i in range(800)]
