"""Files, folders and JSON appear complete or not at all."""

import json
import os
import stat

import numpy as np
import pytest

from research.atomic_write import atomic_write, write_json


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
