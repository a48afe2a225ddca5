"""Embeds the lines of a file: row i of the .npy file is line i.

python -m launch.embed --model=M --input=texts.txt --output=vectors.npy

With --chunk="late(256)" and the like row i is the i-th chunk, and line i of a .jsonl
file beside it names its text and its characters.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from research.atomic_write import atomic_write
from research.data.corpus import read_corpus
from research.types import ChunkEmbeddings

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
    chunk = options.chunking()
    names, texts = read_corpus(INPUT.value)
    given = {} if NORMALIZE.value is None else {"normalize": NORMALIZE.value}
    embed = options.embedder(options.model(), chunk, **given)
    vectors, written = embed(texts, "document"), {"output": str(output)}
    if isinstance(vectors, ChunkEmbeddings):
        places = output.with_suffix(".jsonl")
        _write_places(places, vectors, names)
        vectors = vectors.vectors
        written |= {"places": str(places), "chunks": len(vectors)}
    with atomic_write(output) as path:
        np.save(path, vectors)
    return written | {"texts": len(texts), "dim": vectors.shape[1]}


def _write_places(output: Path, chunks: ChunkEmbeddings, names: list[str]) -> None:
    """For each chunk the name of its text and its characters [start, end)."""
    places = zip(chunks.document_numbers, chunks.start, chunks.end, strict=True)
    with (
        atomic_write(output) as path,
        open(path, "w", encoding="utf-8") as file,
    ):
        for text, start, end in places:
            place = {"document": names[text], "start": int(start), "end": int(end)}
            file.write(json.dumps(place, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    cli.run(main)
