"""Embeds the lines of a file: row i of the .npy file is line i.

python -m launch.embed --model=M --input=texts.txt --output=vectors.npy

With --chunk, such as --chunk="late(256)", row i is the i-th chunk, and line i of a
.jsonl file beside it names its text and its characters.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from research.atomic_write import atomic_write
from research.data.corpus import read_corpus
from research.inference.search import embedding_kind
from research.types import ChunkEmbeddings

INPUT = flags.DEFINE_string(
    "input",
    None,
    "The texts: a .txt file with a text per line or a .jsonl file, plain or .gz.",
    required=True,
)
OUTPUT = flags.DEFINE_string("output", None, "The .npy file to write.", required=True)
NORMALIZE = flags.DEFINE_bool(
    "normalize",
    None,
    "Whether vectors are scaled to length 1. Default: as the model does.",
)


def main():
    """Writes [N, D] float32, and reports their number and width."""
    output = Path(OUTPUT.value).expanduser()
    if output.suffix != ".npy":
        raise ValueError(f"--output={output} should end in .npy")
    chunk = options.parse_single_chunk()
    names, texts = read_corpus(INPUT.value)
    model = options.load_model()
    embedder = options.make_embedder(model, chunk, normalize=NORMALIZE.value)
    vectors, result = embedder(texts, "document"), {"output": str(output)}
    if embedding_kind(vectors) == "multi_vector":
        positions = output.with_suffix(".jsonl")
        _write_positions(positions, vectors, names)
        vectors = vectors.vectors
        result |= {"positions": str(positions), "chunks": len(vectors)}
    with atomic_write(output) as path:
        np.save(path, vectors)
    return result | {"texts": len(texts), "dim": vectors.shape[1]}


def _write_positions(output: Path, chunks: ChunkEmbeddings, names: list[str]) -> None:
    """Writes the name of its text and its characters [start, end) for each chunk."""
    positions = zip(chunks.document_numbers, chunks.start, chunks.end, strict=True)
    with (
        atomic_write(output) as path,
        open(path, "w", encoding="utf-8") as file,
    ):
        for text, start, end in positions:
            position = {"document": names[text], "start": int(start), "end": int(end)}
            file.write(json.dumps(position, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    cli.run(main)
