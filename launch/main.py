"""The frame of every command: parses flags, prints one JSON object or a short error."""

import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from research.atomic_write import atomic_write, to_json
from research.eval.figures import write_picture
from research.processes import explain_lost_process, is_first, is_joined, leave

VIRTUAL = "--xla_force_host_platform_device_count"  # several devices on one CPU
ORDERED = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
# Exit code of a run that a signal stopped, as shells say it (128 + SIGTERM). Schedulers
# start such a run again, and take code 0 for its end.
STOPPED = 143
# Exit code of a process that was killed, or whose run lost another one (EX_TEMPFAIL of
# sysexits.h): the same command resumes it, unlike after a mistake.
LOST = 75
PROGRAMS = "~/.cache/embax/programs"  # compiled programs; see `keep_programs`
# Errors of the user; any other exception is a bug and keeps its traceback.
MISTAKES = (ValueError, OSError)
# Errors of parsing flags: an unknown config key raises an AttributeError or a KeyError,
# and a value of another type a TypeError.
FLAG_MISTAKES = (flags.Error, AttributeError, KeyError, TypeError, *MISTAKES)
HELP_FLAGS = {"--help", "-help", "-h", "-?", "--helpshort"}
HELP_WIDTH, HELP_INDENT = 100, 24  # columns: of a page at most, before a description
# What absl adds to the help of a flag with options, or with several values.
HELP_ADDITIONS = r"^<.*?>:|;\s*repeat this option to specify a list of values$"
# {title: names of flags} of help pages; the last ones come below those of the command
_GROUPS: dict[str, list[str]] = {}
_LAST_GROUPS: dict[str, list[str]] = {}
# Flags that are defined through this module belong to the module that asks for them.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
    """Parser of a local path, in which ~ is the home folder."""

    def parse(self, argument):
        if re.match(r"[a-z][a-z0-9+.-]*://", argument):
            raise ValueError(
                "buckets are not supported; give a local folder, such as one at which "
                "the bucket is mounted, and copy it afterwards"
            )
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help: str, **options):
    """Defines a flag whose value is the path of a file or folder to write.

    Args:
        name: The flag.
        default: Its value if it is not set.
        help: What the path is, as a sentence.
        **options: Further arguments of `absl.flags.DEFINE`, such as required=True.

    Returns:
        The flag's holder, whose `value` is the path as text.
    """
    return flags.DEFINE(_PathParser(), name, default, help, **options)


def define_seed(help: str):
    """Defines the flag --seed, 0 by default."""
    return flags.DEFINE_integer("seed", 0, help, lower_bound=0, upper_bound=2**32 - 1)


def group_flags(title: str, *flags: flags.FlagHolder, last: bool = False) -> None:
    """Puts flags under one title of the help page.

    Args:
        title: The title of the group; further calls add to it.
        *flags: What DEFINE returned, in the order of the page.
        last: Whether the group stands below the command's own groups.
    """
    groups = _LAST_GROUPS if last else _GROUPS
    groups.setdefault(title, []).extend(flag.name for flag in flags)


def format_help(doc: str, key_flags: Sequence[flags.Flag], width: int) -> str:
    """The help page of a command: what it does, with examples, and its flags in groups.

    Args:
        doc: The docstring of the command.
        key_flags: Its flags; those that are in no group come last.
        width: Columns of the terminal.
    """
    by_name = {flag.name: flag for flag in key_flags}
    # The parts of the page
    parts = [doc.strip()]
    for title, names in [*_GROUPS.items(), *_LAST_GROUPS.items(), ("Flags", by_name)]:
        described = [by_name.pop(name) for name in list(names) if name in by_name]
        if described:
            lines = [_describe_flag(flag, width) for flag in described]
            parts.append("\n".join([f"{title}:", *lines]))
    parts.append("--verbosity=1 adds the traceback to an error.")
    return "\n\n".join(parts)


def _describe_flag(flag: flags.Flag, width: int) -> str:
    """A flag's lines on a help page: its name, its description and its default."""
    # Only what is on, or is left to the model, has to be switched off
    is_switch = flag.boolean and flag.default is not False
    name = f"  --{'[no]' if is_switch else ''}{flag.name}"
    description = [re.sub(HELP_ADDITIONS, "", flag.help).strip()]
    if options := getattr(flag.parser, "enum_values", None):
        description.append(f"One of {', '.join(options)}.")
    if any("must have a value" in check.message for check in flag.validators):
        description.append("Required.")
    elif flag.default not in (None, "", False, []) and "Default:" not in flag.help:
        value = flag.default
        value = ",".join(map(str, value)) if isinstance(value, list) else value
        description.append(f"Default: {value}.")
    # The description begins beside a short name, and below a long one
    lines = textwrap.fill(
        " ".join(description),
        width,
        initial_indent=" " * HELP_INDENT,
        subsequent_indent=" " * HELP_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if len(name) < HELP_INDENT:
        return name + lines[len(name) :]
    return f"{name}\n{lines}"


def run(
    main: Callable[..., Mapping[str, Any] | None],
    doc: str = "",
    *,
    takes_names: bool = False,
) -> None:
    """Parses the flags, calls `main()` and prints its result as one line of JSON.

    Logs and progress go to stderr. An error of the user (a bad flag or config, a
    ValueError or OSError from main) prints one sentence there, and the exit code is 1;
    `--verbosity=1` adds the traceback. A result with "finished": false exits with 143,
    one with parts that "failed" with 1, and the death of another process of the run
    with 75.

    Args:
        main: The command.
        doc: Head of its help page; the docstring of the program if empty.
        takes_names: Whether the command takes arguments that are no flags, as
            main(*names).
    """

    def run_command(arguments):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax logs every file
        if VIRTUAL in os.environ.get("XLA_FLAGS", ""):
            order_collectives()
        keep_programs()
        # At its default level, JAX warns about every missing accelerator.
        logging.get_absl_logger().parent.getChild("jax").setLevel("WARNING")
        names = arguments[1:]
        if names and not takes_names:
            _fail(f"unexpected argument {names[0]!r}; options start with --")
        # Errors of the user end in one sentence, bugs in a traceback.
        try:
            result = main(*names)
        except MISTAKES as error:
            logging.debug("traceback of the error below", exc_info=True)
            _fail(format_error(error))
        except Exception as error:
            if not is_joined():
                raise
            if sentence := explain_lost_process(error):
                _fail(sentence, LOST)
            traceback.print_exc()
            leave(1)
        if result is not None:
            # The first process speaks for all of a run
            if is_first():
                sys.stderr.flush()
                print(to_json(result), flush=True)
            if result.get("finished") is False:
                sys.exit(STOPPED)
            if result.get("failed"):  # some parts; the result has the others
                sys.exit(1)

    # The flags of a model are also those of the command: --help lists them.
    if "launch.flags" in sys.modules:
        flags.adopt_module_key_flags(sys.modules["launch.flags"])
    doc = doc or sys.modules["__main__"].__doc__
    app.run(run_command, flags_parser=partial(_parse_flags, doc))


def order_collectives() -> None:
    """Prevents a deadlock of virtual devices; call it before anything is compiled.

    XLA's default scheduler for CPUs runs independent collectives concurrently, and each
    device may start with a different one. With fewer cores than devices, two devices
    can then hold all threads and wait in different collectives, until XLA aborts.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ORDERED}".strip()


def keep_programs() -> None:
    """Keeps compiled programs on disk, where later commands find them.

    They are in JAX's persistent compilation cache: the folder that the environment
    variable JAX_COMPILATION_CACHE_DIR names, or else XDG_CACHE_HOME/embax/programs.
    JAX_ENABLE_COMPILATION_CACHE=false keeps none, and neither does a folder that cannot
    be written.
    """
    enabled = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower()
    if enabled in ("0", "false", "off") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # The folder; without a home there is none.
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = os.path.expanduser(f"{cache}/embax/programs" if cache else PROGRAMS)
    try:
        if os.path.isabs(folder):
            os.makedirs(folder, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        log(f"compiled programs are not kept: {folder} cannot be written")
        return
    # JAX reads the variables once, when it is imported, which may be past or to come.
    options = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(name, value)


def write_page(
    folder: Path, name: str, record: Mapping, page: str, plot: Callable[[Path], object]
) -> None:
    """Writes a record as JSON, its table as Markdown and its picture as PNG and SVG.

    Args:
        folder: Folder of the files.
        name: Their name, without the endings.
        record: Content of the JSON file.
        page: Content of the Markdown file.
        plot: Function that writes the picture to a path.
    """
    with (
        atomic_write(folder / f"{name}.json") as data,
        atomic_write(folder / f"{name}.md") as table,
    ):
        data.write_text(to_json(record, indent=2) + "\n")
        table.write_text(page)
        write_picture(folder / f"{name}.png", plot)


def log(line: str) -> None:
    """Prints a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def format_error(error: Exception) -> str:
    """An exception's message on one line, without the name of its class."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if isinstance(error, (KeyError, AttributeError)):  # ConfigDict's unknown keys
        text = f"unknown config key: {_find_innermost(error)}"
    # Flags that are missing or unknown, and the nearest known flag or key.
    if missing := re.findall(r"Flag (--\w+) must have a value other than None", text):
        return f"{', '.join(missing)} must be given; --help describes all flags"
    text = re.sub(r"^Unknown command line flag '(.*?)'\.?", r"unknown flag --\1", text)
    if near := re.search(r"\s*Did you mean: (.*?) \?$", text):
        options = " or ".join(f"--{name}" for name in near[1].split(", "))
        text = f"{text[: near.start()]}; did you mean {options}?"
    text = re.sub(r'\s*Did you mean "(.*?)" instead.*$', r"; did you mean \1?", text)
    # A missing config file, or an error inside of one.
    if missing := re.search(
        r"Failed loading config file.*No such file.*'(.*)'", text, re.S
    ):
        text = f"{missing[1]}: no such config file"
    if "Error whilst parsing config file" in text:  # a traceback follows
        text = re.sub(r"^[\w.]+(Error|Exception): ", "", text.strip().split("\n")[-1])
    text = " ".join(text.split())
    # Recipes read public sets, which the user may not have yet.
    if isinstance(error, FileNotFoundError):
        from research.interop.public_sets import find_fetch_command

        if fetch := find_fetch_command(text):
            text += f"; `{fetch}` brings it"
    return text


def _find_innermost(error: Exception) -> str:
    """The innermost message of nested errors, without the quotes of a KeyError."""
    inner = error.args[0] if error.args else ""
    text = _find_innermost(inner) if isinstance(inner, Exception) else str(inner)
    return re.sub(r"^'(.+?)'", r"\1", text)


def _parse_flags(doc: str, arguments: list[str]) -> list[str]:
    """Parses the flags, and returns the other arguments."""
    if HELP_FLAGS & set(arguments[1:]):
        key_flags = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        width = min(shutil.get_terminal_size().columns, HELP_WIDTH)
        print(format_help(doc, key_flags, width))
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except SystemExit:  # absl has printed --helpfull, and would exit with 1
        sys.exit(0)
    except FLAG_MISTAKES as error:
        _fail(format_error(error))


def _fail(message: str, code: int = 1):
    print(f"error: {message}", file=sys.stderr, flush=True)
    if is_joined():
        leave(code)
    sys.exit(code)
