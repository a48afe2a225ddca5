"""Files, folders and JSON appear complete or not at all."""

import gzip
import json
import math
import os
import re
import stat
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from research.atomic_write import atomic_write, open_gzip, to_json, write_json


def test_a_file_is_replaced_only_after_success(tmp_path):
    path = tmp_path / "new" / "scores.txt"
    with atomic_write(path) as draft:
        assert not path.exists() and draft.suffix == ".txt"
        draft.write_text("first")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["scores.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_folder_appears_with_everything_in_it(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(ZeroDivisionError), atomic_write(path, folder=True) as draft:
        (draft / "half").write_text("")
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())
    path.mkdir()  # an empty one may be there
    with atomic_write(path, folder=True) as draft:
        (draft / "config.json").write_text("{}")
    assert os.listdir(path) == ["config.json"]
    refused = pytest.raises(FileExistsError, match="model is there and not empty")
    with refused, atomic_write(path, folder=True):
        pass


def test_json_takes_numbers_of_numpy(tmp_path):
    write_json(tmp_path / "a.json", {"score": np.float32(0.5)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"score": 0.5}


def test_json_has_no_nan():
    content = {
        "score": math.nan,
        "rows": [(1.5, -math.inf), {"x": np.float32("nan"), "y": np.float32(0.5)}],
        "n": np.int64(3),
        "text": "NaN",
        "flag": True,
        "jax": jnp.float32(2),
    }

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(to_json(content), parse_constant=refuse) == {
        "score": None,
        "rows": [[1.5, None], {"x": None, "y": 0.5}],
        "n": 3,
        "text": "NaN",
        "flag": True,
        "jax": 2,
    }


def test_all_json_that_is_written_is_valid():
    root = Path(__file__).parent.parent
    # What these write is no file: messages, and the text that a hash is made of.
    others = {"atomic_write.py", "fields.py", "ablation_runs.py"}
    files = {
        path.name
        for folder in ("research", "launch")
        for path in (root / folder).rglob("*.py")
        if re.search(r"json\.dumps?\b", path.read_text())
    }
    assert files == others


def test_the_bytes_of_a_packed_text_are_those_of_its_content(tmp_path):
    for name in ("a.gz", "b.gz"):
        with open_gzip(tmp_path / name) as file:
            file.write("one\ntwo\n")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    with gzip.open(tmp_path / "a.gz", "rt", newline="") as file:
        assert file.read() == "one\ntwo\n"
