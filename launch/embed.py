"""Command that embeds texts, on all devices and processes.

python -m launch.embed --model=M --input=texts.txt --output=vectors.npy
python -m launch.embed --model=M --input="corpus/*.jsonl.gz" --output=vectors
python -m launch.embed --model=M --input=train.jsonl --examples --output=vectors.npy

Row i of a .npy file is the i-th text or, with --chunk, such as --chunk="late(256)", the
i-th chunk; line i of the .ids.jsonl file beside it gives the text's id and the chunk's
characters. Of a model with a vector per token, rows are tokens, and line i gives the id
and the number of vectors of text i. Sparse vectors are a SciPy .npz file. A folder gets
such files for every --shard_size texts: the memory is that of two shards, and a command
that was stopped goes on when it is run again. The transform of --transform is written
beside the vectors; codes, such as those of int8, need it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from launch import flags as options
from launch import main as cli
from launch.embed_folder import embed_folder, make_role_embedder, read_places
from launch.supervise import supervise
from research import processes
from research.data.corpus import (
    CorpusText,
    find_corpus,
    read_example_texts,
    read_texts,
)
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.shard_files import get_ids_path, write_shard
from research.inference.shares import split_over_processes
from research.inference.similarity import embedding_kind
from research.transforms.pipeline import FILE, save_transform

INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "The texts: a .txt file with a text per line or a .jsonl, .tsv or .csv file, plain "
    "or .gz, or a pattern of such files. The flag may be repeated.",
    required=True,
)
OUTPUT = cli.define_path(
    "output",
    None,
    "The .npy file to write (.npz of sparse vectors), or a folder (a name without an "
    "ending, or with a / after it) for a corpus that does not fit the memory.",
    required=True,
)
ROLE = flags.DEFINE_string(
    "role",
    "document",
    "The role of the texts, whose prompt and adapter they get: document, query, or "
    "another prompt of the model.",
)
SHARD_SIZE = flags.DEFINE_integer(
    "shard_size",
    65_536,
    "The number of texts in a file of the folder.",
    lower_bound=1,
)
ALLOW_EMPTY = flags.DEFINE_bool(
    "allow_empty",
    False,
    "Whether a text may be empty, as some documents of BEIR's FiQA are: its special "
    "tokens are then embedded, as launch.evaluate does.",
)
EXAMPLES = flags.DEFINE_bool(
    "examples",
    False,
    "Whether the files hold training examples: their queries (with --role=query), or "
    "their positives and negatives (--role=document), are embedded, each text once. "
    "Such vectors can teach another model (config.teacher).",
)
COLUMNS = flags.DEFINE_string(
    "columns",
    "",
    'The columns of --examples, such as "query=ask, positive=reply"; the usual names '
    "are found without.",
)
NORMALIZE = flags.DEFINE_bool(
    "normalize",
    None,
    "Whether vectors are scaled to length 1. Default: as the model does.",
)
FILES = (".npy", ".npz")
cli.group_flags("Texts", INPUT, ROLE, ALLOW_EMPTY, EXAMPLES, COLUMNS)
cli.group_flags("Output", OUTPUT, SHARD_SIZE, NORMALIZE)


def main():
    """Writes the embeddings as [N, D] float32, and returns their number and width."""
    # Connect the processes before JAX is used.
    processes.initialize()
    output = Path(OUTPUT.value)
    if output.suffix not in (*FILES, "") and not OUTPUT.value.endswith("/"):
        raise ValueError(f"--output={output} should end in .npy, or in / for a folder")
    if EXAMPLES.value and ROLE.value not in ("query", "document"):
        raise ValueError(f"--examples has no texts of --role={ROLE.value}")
    if EXAMPLES.value and (folders := [p for p in INPUT.value if Path(p).is_dir()]):
        raise ValueError(
            f"--examples reads files, but {folders[0]} is a folder; without it, "
            "--input=FOLDER embeds the documents of a BEIR folder, and "
            "--input=FOLDER/queries.jsonl --role=query its queries"
        )
    if COLUMNS.value and not EXAMPLES.value:
        raise ValueError("--columns are those of --examples")
    # Check the flags and the input before the model is loaded.
    chunk, files = options.parse_single_chunk(), find_corpus(INPUT.value)
    if output.suffix in FILES:
        return _embed_to_file(output, files, chunk)
    _, result = embed_folder(
        output,
        files,
        _read_corpus,
        chunk,
        role=ROLE.value,
        shard_size=SHARD_SIZE.value,
        allow_empty=ALLOW_EMPTY.value,
        normalize=NORMALIZE.value,
    )
    return result


def _embed_to_file(output: Path, files: list[Path], chunk) -> dict:
    """Embeds all texts at once, and writes them to one file."""
    # A file of its own, which replaces no text
    if SHARD_SIZE.present:
        raise ValueError(f"--shard_size goes with a folder, not --output={output}")
    outputs = {output.resolve(), get_ids_path(output).resolve()}
    if not outputs.isdisjoint(file.resolve() for file in files):
        raise ValueError(f"--output={output} would replace the input")
    names, texts, places = zip(*read_places(files, _read_corpus), strict=True)
    embedder = make_role_embedder(chunk, ROLE.value, NORMALIZE.value, ALLOW_EMPTY.value)
    # A SciPy file of sparse vectors, a NumPy file of others
    ending = ".npz" if embedder.kind == "sparse" else ".npy"
    if output.suffix != ending:
        raise ValueError(
            f"--output={output} should end in {ending}: the vectors of "
            f"{options.MODEL.value} are {embedder.kind.replace('_', '-')}"
        )
    embed = split_over_processes(embedder)
    embeddings = embed(texts, ROLE.value, label=places.__getitem__)
    # All processes hold all embeddings. Codes need their transform to be read.
    if processes.is_first():
        if embedder.model.transform is not None:
            save_transform(embedder.model.transform, output.with_suffix(f".{FILE}"))
        stored = store_vectors(embeddings, embedder.model.quantizer)
        write_shard(output, stored, names, texts)
    result = {"output": str(output), "ids": str(get_ids_path(output))}
    if embedding_kind(embeddings) == "multi_vector":
        noun = "vectors" if chunk is None else "chunks"
        result[noun] = len(embeddings.vectors)
    if embedder.kind == "sparse":
        result["weights"] = embeddings.nnz
    return result | {"texts": len(texts), "dim": embedder.width}


def _read_corpus(files: Sequence[Path]) -> Iterator[CorpusText]:
    """Yields the texts of the files, a corpus or training examples."""
    if EXAMPLES.value:
        return read_example_texts(files, ROLE.value, COLUMNS.value)
    return read_texts(files, allow_blank=ALLOW_EMPTY.value)


if __name__ == "__main__":
    supervise()
    cli.run(main)
