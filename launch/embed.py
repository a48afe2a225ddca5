"""Command that embeds the texts of a file: row i of the .npy file is text i.

python -m launch.embed --model=M --input=texts.txt --output=vectors.npy

With --chunk, such as --chunk="late(256)", row i is the i-th chunk. Line i of a .jsonl
file of the same name then gives the text and the characters of that chunk.
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
    """Writes the embeddings as [N, D] float32, and returns their number and width."""
    output = Path(OUTPUT.value).expanduser()
    if output.suffix != ".npy":
        raise ValueError(f"--output={output} should end in .npy")
    # Check the flags and the input before the model is loaded.
    chunk = options.parse_single_chunk()
    names, texts = read_corpus(INPUT.value)
    model = options.load_model()
    embedder = options.make_embedder(model, chunk, normalize=NORMALIZE.value)
    vectors, result = embedder(texts, "document"), {"output": str(output)}
    # Chunks: a file of their positions beside the vectors.
    if embedding_kind(vectors) == "multi_vector":
        positions = output.with_suffix(".jsonl")
        _write_positions(positions, vectors, names)
        vectors = vectors.vectors
        result |= {"positions": str(positions), "chunks": len(vectors)}
    with atomic_write(output) as path:
        np.save(path, vectors)
    return result | {"texts": len(texts), "dim": vectors.shape[1]}


def _write_positions(output: Path, chunks: ChunkEmbeddings, names: list[str]) -> None:
    """Writes a line per chunk: name of its text, range of characters [start, end)."""
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
