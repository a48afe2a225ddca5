"""Embeds the lines of a file: row i of the .npy file is line i.

python -m launch.embed --model=M --input=texts.txt --output=vectors.npy
"""

from pathlib import Path

import numpy as np
from absl import flags

from launch import cli, options
from research.eval.corpus import read_corpus
from research.eval.embed import make_embedder

INPUT = flags.DEFINE_string(
    "input", None, "A .txt with a text a line, or a jsonl; or + .gz.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "The .npy file to write.", required=True)
NORMALIZE = flags.DEFINE_bool(
    "normalize", None, "Scale vectors to length 1. Default: as the model has it."
)


def main():
    """Writes [N, D] float32, and reports their number and width."""
    output = Path(OUTPUT.value).expanduser()
    if output.suffix != ".npy":
        raise ValueError(f"--output={output} should end in .npy")
    _, texts = read_corpus(INPUT.value)
    model = options.model()
    settings = options.embedding(model)
    if NORMALIZE.value is not None:
        settings["normalize"] = NORMALIZE.value
    embed = make_embedder(model.params, model.config, **settings)
    vectors = embed(texts, "document")
    with cli.replacing(output) as path:
        np.save(path, vectors)
    return {"output": str(output), "texts": len(vectors), "dim": vectors.shape[1]}


if __name__ == "__main__":
    cli.run(main)
