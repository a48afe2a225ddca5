import json
import os
import re
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
        (
            [f"--input={texts}", f"--output={output}", "--dims=3"],
            "unknown flag --dims; did you mean --dim?",
        ),
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
    for flag in ("--model ", "--[no]bidirectional ", "--role ", "--prompt "):
        assert f"  {flag}" in result.stdout
    titles = re.findall(r"^(\w.*):$", result.stdout, re.M)
    assert titles[:3] == ["Model", "Texts", "Output"]
    assert "Flags" not in titles and "launch/" not in result.stdout
    result = command("launch.train", "--config=configs/finetune.py", "--help")
    assert "columns=" in result.stdout and "--workdir" in result.stdout


def test_a_help_page_says_what_is_required_and_the_defaults():
    values = flags.FlagValues()
    options = {"flag_values": values}
    flags.DEFINE_enum("task", None, ["a", "b"], "The task.", required=True, **options)
    flags.DEFINE_multi_string("input", None, "The texts.", **options)
    flags.DEFINE_list("lengths", [1, 2], "The lengths of texts.", **options)
    flags.DEFINE_bool("normalize", None, "Whether. Default: as the model.", **options)
    flags.DEFINE_bool("a_flag_with_a_long_name", False, "Whether it is.", **options)
    page = main.format_help("A command.\n", [values[f] for f in values], width=60)
    assert page.splitlines()[:2] == ["A command.", ""]
    assert "  --task                The task. One of a, b. Required." in page
    assert "  --input               The texts.\n" in page
    assert "  --lengths             The lengths of texts. Default: 1,2." in page
    assert "  --[no]normalize       Whether. Default: as the model." in page
    assert f"  --a_flag_with_a_long_name\n{24 * ' '}Whether it is." in page
    assert max(map(len, page.splitlines())) <= 60


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            flags.UnrecognizedFlagError("modl", "", ["model", "mode"]),
            "unknown flag --modl; did you mean --model or --mode?",
        ),
        (flags.UnrecognizedFlagError("zz"), "unknown flag --zz"),
        (
            AttributeError('\'stepz\'\nDid you mean "steps" instead of "stepz"?'),
            "unknown config key: stepz; did you mean steps?",
        ),
        (
            flags.IllegalFlagValueError(
                "flag --a=None: Flag --a must have a value other than None.\n"
                "flag --b=None: Flag --b must have a value other than None."
            ),
            "--a, --b must be given; --help describes all flags",
        ),
    ],
)
def test_a_mistake_in_a_flag_names_the_nearest(error, sentence):
    assert main.format_error(error) == sentence


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


def test_a_result_with_failed_parts_is_printed_and_no_success():
    code = "from launch import main; main.run(lambda: {'failed': {'a-seed0': 'why'}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 1 and json.loads(done.stdout)["failed"]


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
