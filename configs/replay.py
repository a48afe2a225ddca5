"""Repeats a run from the config.json in its workdir (replay.py:WORKDIR/config.json).

Source: the run's own config; flags still override its values.
Command: python -m launch.train --config=configs/replay.py:runs/a/config.json \
    --workdir=runs/b
Variants: the path of the config.json, and nothing else.
Cost: that of the run.
Expected: the same metrics, to the last bit on the same devices.
"""

from pathlib import Path

import ml_collections

from research.atomic_write import read_json
from research.config_sections import SHORT, Table, section
from research.experiment.config_keys import GROUP_TABLES, SECTION_TABLES


def get_config(path: str = ""):
    """The config in a JSON file, whose sections get back what JSON does not keep."""
    if not path:
        raise ValueError(
            "replay.py needs a file: configs/replay.py:WORKDIR/config.json"
        )
    content = _convert_tuples(read_json(Path(path)))
    # A section restores the type of an option that is None
    for key, value in content.items():
        try:
            if key in SECTION_TABLES:
                content[key] = _make_section(SECTION_TABLES[key], value)
            elif key in GROUP_TABLES:
                if not isinstance(value, dict):
                    raise ValueError(
                        f"{SHORT.repr(value)} is no object of names and calls"
                    )
                content[key] = {
                    name: _make_section(GROUP_TABLES[key], part)
                    for name, part in value.items()
                }
        except ValueError as error:
            raise ValueError(f"{path}: {key} is no section: {error}") from None
    return ml_collections.ConfigDict(content)


def _make_section(table: Table, value) -> ml_collections.ConfigDict:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"{SHORT.repr(value)} names no function")
    return section(table, **value)


def _convert_tuples(value):
    # JSON has no tuples, and no config has lists.
    if isinstance(value, dict):
        return {name: _convert_tuples(part) for name, part in value.items()}
    return tuple(map(_convert_tuples, value)) if isinstance(value, list) else value
