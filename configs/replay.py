"""A run again, from the config.json that it left (replay.py:WORKDIR/config.json).

Source: the run's own file; overrides still work.
Command: python -m launch.train --config=configs/replay.py:runs/a/config.json \
    --workdir=runs/b
Variants: the path, and nothing else.
Cost: the run's.
Expected: the run's metrics again, to the last bit on the same devices.
"""

import json
from pathlib import Path

import ml_collections


def get_config(path: str = ""):
    """The config in a JSON file, its lists turned back into tuples."""
    return ml_collections.ConfigDict(
        _convert_tuples(json.loads(Path(path).read_text()))
    )


def _convert_tuples(value):
    if isinstance(value, dict):
        return {name: _convert_tuples(part) for name, part in value.items()}
    return tuple(map(_convert_tuples, value)) if isinstance(value, list) else value
