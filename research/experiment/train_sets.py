"""Config sections of the sources for a file of one's own, or for a list of sources."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from research.config_sections import build, section
from research.data.examples import Example
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS

# Arguments of sources that are paths; a list's are relative to its own folder.
PATHS = ("path", "corpus", "clusters")
Sections = dict[str, ml_collections.ConfigDict]


def choose_sources(path: str, **defaults) -> Sections:
    """The config sections of the sources in a file, by their names.

    A file of examples is one source, "train". A .toml file lists several: a table for
    each, which holds the arguments of the source `files`, or of the one of SOURCES that
    its `name` gives.

        [faq]
        path = "faq.csv"
        weight = 2.0

        [articles]
        name = "beir"
        path = "articles"

    Args:
        path: The file.
        **defaults: Arguments of `files` where the list has no others.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: The list is no TOML, or is not as above.
    """
    if not path.endswith(".toml"):
        return {"train": section(SOURCES, "files", path=path, **defaults)}
    sections = {}
    for name, table in _read_tables(path).items():
        kind = table.pop("name", "files")
        arguments = (defaults if kind == "files" else {}) | table
        try:
            sections[name] = section(SOURCES, kind, **arguments)
        except ValueError as error:
            raise ValueError(f"{path}: [{name}]: {error}") from None
    return sections


def choose_held_out(sections: Sections) -> Sections:
    """Leaves a part of each file out of the training, and makes its evaluator.

    Args:
        sections: Sources by their names, which are changed.

    Returns:
        {"dev": the evaluator}, or {"dev_NAME": that of each source} if there are
        several.

    Raises:
        ValueError: A source is no file, of which a part could be held out.
    """
    evaluators = {}
    for name, source in sections.items():
        if source.name != "files":
            raise ValueError(
                f"data {name!r}: no part of a source {source.name} can be held out for "
                "evaluation; name a file by dev=FILE"
            )
        source.part = "train"
        key = "dev" if len(sections) == 1 else f"dev_{name}"
        columns = {"columns": source.columns, "part": "held_out"}
        evaluators[key] = section(EVALS, "examples", data=source.path, **columns)
    return evaluators


def read_first_examples(sections: Sections) -> tuple[int, dict[str, Example]]:
    """(number of examples of all sources, the first example of each)."""
    count, first = 0, {}
    for name, source in sections.items():
        examples = build(SOURCES, source).examples
        count += len(examples)
        first[name] = examples[0]
    return count, first


def _read_tables(path: str) -> dict[str, dict[str, Any]]:
    """The tables of a .toml file, with its paths and tuples as sources take them."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    if not tables:
        raise ValueError(f"{path} lists no source; a source is a table, such as [faq]")
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ValueError(
                f'{path}: {name} is no table; write [{name}] and below it path = "FILE"'
            )
        for key, value in table.items():
            if key in PATHS and isinstance(value, str) and value:
                table[key] = _resolve_path(file, value)
            elif key in PATHS and isinstance(value, list):
                table[key] = tuple(_resolve_path(file, str(item)) for item in value)
            elif isinstance(value, list):
                table[key] = tuple(value)
    return tables


def _resolve_path(file: Path, path: str) -> str:
    """A path that a list names, relative to the list's folder."""
    return str(file.parent / Path(path).expanduser())
