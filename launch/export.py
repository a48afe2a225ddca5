"""Writes a model as a sentence-transformers folder.

python -m launch.export --model=M --output=DIR [--depth=L] [--dim=D]
"""

from pathlib import Path

from absl import flags

from launch import cli
from research.export import export
from research.pretrained import load

MODEL = flags.DEFINE_string(
    "model", None, "A workdir, a model folder, package:NAME or a hub id."
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write: new, or empty.")
DEPTH = flags.DEFINE_integer("depth", None, "Keep the first blocks only.", 1)
DIM = flags.DEFINE_integer("dim", None, "Keep the first numbers only.", 1)
flags.mark_flags_as_required(["model", "output"])


def main() -> dict:
    """Exports as the flags say, and returns what was written."""
    output = Path(OUTPUT.value).expanduser()
    return export(load(MODEL.value), output, depth=DEPTH.value, dim=DIM.value)


if __name__ == "__main__":
    cli.run(main)
