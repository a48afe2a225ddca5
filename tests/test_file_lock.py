"""Locks of files: of one process at a time, and released by its death."""

import errno
import fcntl
import json
import threading
import time

import pytest

from research.data.token_cache import write_once
from research.file_lock import lock_folder, try_lock, wait_for_lock


def refuse(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")


def test_a_lock_has_one_holder_until_its_file_is_closed(tmp_path):
    path = tmp_path / "new" / "lock"
    with try_lock(path):
        assert try_lock(path) is None
    with try_lock(path) as file:
        assert file is not None and path.exists()


def test_a_table_that_several_want_at_once_is_written_once(tmp_path, capfd):
    calls, paths = [], []

    def write(draft):
        calls.append(draft)
        time.sleep(0.2)
        (draft / "table").write_text("x")

    threads = [
        threading.Thread(target=lambda: paths.append(write_once(tmp_path, "t", write)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and paths == [tmp_path / "t"] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert "waiting for another process" in capfd.readouterr().err


def test_a_lock_is_released_by_an_error(tmp_path):
    path = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), wait_for_lock(path):
        raise ZeroDivisionError
    assert not path.exists()
    with wait_for_lock(path):
        assert path.exists()


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path), wait_for_lock(tmp_path / "other"):
        pass
    error = capfd.readouterr().err
    assert "run.lock cannot be locked (Operation not supported)" in error


def test_a_second_run_is_told_who_holds_the_workdir(tmp_path):
    with lock_folder(tmp_path), lock_folder(tmp_path):
        holder = json.loads((tmp_path / "run.lock").read_text())
    with try_lock(tmp_path / "run.lock") as file:
        file.truncate(0)
        file.write(json.dumps(holder | {"pid": 1, "host": "node7"}))
        file.flush()
        refused = pytest.raises(
            ValueError, match=f"another run is in {tmp_path}: process 1 on node7, since"
        )
        with refused, lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        pass
