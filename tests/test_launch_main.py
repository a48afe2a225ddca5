import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from launch import main
from research.interop.sentence_transformers.write import export
from tests.tiny_models import make_model

ROOT = Path(__file__).parent.parent


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def test_a_mistake_is_one_sentence(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n\nthree\n")
    output = tmp_path / "x.npy"
    for arguments, message in (
        ([f"--input={texts}", f"--output={output}"], "line 2: text is empty"),
        ([f"--input={texts}", f"--output={output}", "--dims=3"], "flag 'dims'"),
        ([f"--input={tmp_path}/none.txt", f"--output={output}"], "there is no file"),
    ):
        result = command("launch.embed", "--model=none", *arguments)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == [texts]


def test_help_lists_the_flags_of_the_model_and_is_a_success():
    result = command("launch.embed", "--help")
    assert result.returncode == 0, result.stderr
    for flag in ("--model:", "--[no]bidirectional:", "--role:", "--prompt:"):
        assert flag in result.stdout
    result = command("launch.bench", "--help")
    assert result.returncode == 0 and "--rounds:" in result.stdout


def test_a_path_is_local_and_has_its_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    values = flags.FlagValues()
    main.define_path("workdir", None, "A folder.", flag_values=values)
    values(["", "--workdir=~/runs/a"])
    assert values.workdir == "/home/ann/runs/a"
    for address in ("gs://bucket/run", "s3://bucket/run"):
        with pytest.raises(flags.Error, match=f"{address}: buckets are not supported"):
            values(["", f"--workdir={address}"])


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


@pytest.fixture
def cache_free(monkeypatch):
    """The environment without JAX's variables of the compilation cache."""
    for name in [n for n in os.environ if n.startswith(("JAX_COMP", "JAX_PERS"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_command_keeps_its_only_program(tmp_path, cache_free):
    export(make_model(), tmp_path / "model")
    (tmp_path / "texts.txt").write_text("old leaf\n")
    cache_free.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_free.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    cache_free.setenv("JAX_LOG_COMPILES", "1")
    result = command(
        "launch.embed",
        f"--model={tmp_path}/model",
        f"--input={tmp_path}/texts.txt",
        f"--output={tmp_path}/x.npy",
        env=os.environ,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Finished XLA compilation") == 1
    programs = list((tmp_path / "cache" / "embax" / "programs").iterdir())
    assert [path.name.startswith("jit__encode_rows") for path in programs] == [True]


def test_programs_are_kept_where_the_user_says_or_not_at_all(cache_free, tmp_path):
    options = {}
    config = SimpleNamespace(update=options.__setitem__)
    cache_free.setitem(sys.modules, "jax", SimpleNamespace(config=config))
    cache_free.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    main.keep_programs()
    cache_free.delenv("JAX_COMPILATION_CACHE_DIR")
    cache_free.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    main.keep_programs()
    assert not options
    # Otherwise in the user's cache, for JAX here and in commands that this one starts
    cache_free.delenv("JAX_ENABLE_COMPILATION_CACHE")
    cache_free.setenv("XDG_CACHE_HOME", str(tmp_path))
    main.keep_programs()
    folder = f"{tmp_path}/embax/programs"
    assert options["jax_compilation_cache_dir"] == folder and os.path.isdir(folder)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == folder


def test_a_cache_that_cannot_be_written_is_left_out(cache_free, tmp_path, capsys):
    (tmp_path / "file").touch()
    cache_free.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    main.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert capsys.readouterr().err == (
        f"compiled programs are not kept: {tmp_path}/file/embax/programs cannot be "
        "written\n"
    )
