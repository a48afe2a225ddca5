"""Repeats a run from the config.json in its workdir (replay.py:WORKDIR/config.json).

Source: the run's own config; flags still override its values.
Command: python -m launch.train --config=configs/replay.py:runs/a/config.json \
    --workdir=runs/b
Variants: the path of the config.json, and nothing else.
Cost: that of the run.
Expected: the same metrics, to the last bit on the same devices.
"""

import json
from pathlib import Path

import ml_collections


def get_config(path: str = ""):
    """The config in a JSON file, its lists turned back into tuples."""
    # JSON has no tuples, and no config has lists.
    return ml_collections.ConfigDict(
        _convert_tuples(json.loads(Path(path).read_text()))
    )


def _convert_tuples(value):
    if isinstance(value, dict):
        return {name: _convert_tuples(part) for name, part in value.items()}
    return tuple(map(_convert_tuples, value)) if isinstance(value, list) else value
