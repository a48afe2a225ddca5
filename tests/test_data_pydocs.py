import sys

import pytest

from research.data import docstrings, pydocs, sources
from research.data.sources import Row

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


def test_a_set_without_tensorflow(tmp_path, folder, monkeypatch):
    options = {"cache": str(tmp_path / "tfds"), "folders": (str(folder),)}
    train, test = (pydocs.load(split, **options) for split in ("train", "test"))
    assert "tensorflow" not in sys.modules
    assert len(train) + len(test) == 12 + 1  # `common` is kept once
    assert len(test) > 0
    for split, data in ((False, train), (True, test)):
        for record in data:
            assert docstrings.is_test(record["package"].decode(), 8) is split
    packages = [{r["package"] for r in data} for data in (train, test)]
    assert not packages[0] & packages[1]
    record = next(r for r in train if b"first_p2(" in r["document"])
    assert record["query"] == b"Returns the first p2 among the values."
    assert record["document"].startswith(b"def first_p2(values):\n    return next")

    monkeypatch.setattr(pydocs, "splits", None)  # made once
    assert len(pydocs.load("train", **options)) == len(train)
    monkeypatch.setattr(docstrings, "installed", lambda: options["folders"])
    source = sources.pydocs(split="test", cache=options["cache"])
    assert len(source.rows) == len(test)
    assert all(isinstance(row, Row) and row.query for row in source.rows)
    few = sources.pydocs(split="train", limit=3, cache=options["cache"])
    assert few.rows == list(sources.pydocs(cache=options["cache"]).rows)[:3]
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
