import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import main

ROOT = Path(__file__).parent.parent


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_a_mistake_is_one_sentence(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n\nthree\n")
    output = tmp_path / "x.npy"
    for flags, message in (
        ([f"--input={texts}", f"--output={output}"], "line 2 is empty"),
        ([f"--input={texts}", f"--output={output}", "--dims=3"], "flag 'dims'"),
        ([f"--input={tmp_path}/none.txt", f"--output={output}"], "there is no file"),
    ):
        result = command("launch.embed", "--model=none", *flags)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == [texts]


def test_a_stopped_run_prints_its_result_and_is_no_success():
    code = "from launch import main; main.run(lambda: {'step': 3, 'finished': False})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == main.STOPPED == 128 + signal.SIGTERM
    assert json.loads(done.stdout) == {"step": 3, "finished": False}


def test_collectives_keep_their_order_beside_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", main.VIRTUAL + "=4")
    main.order_collectives()
    assert os.environ["XLA_FLAGS"].split() == [main.VIRTUAL + "=4", main.ORDERED]


@pytest.mark.parametrize(
    "error,sentence",
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError("there is no file x"), "there is no file x"),
        (PermissionError(13, "Permission denied", "x"), "x: Permission denied"),
        (KeyError("'stepz'"), "unknown config key: stepz"),
    ],
)
def test_sentences(error, sentence):
    assert main.format_error(error) == sentence
