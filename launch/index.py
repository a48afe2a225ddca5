"""Command that builds an index of a corpus: its vectors, and where its texts are.

python -m launch.index --model=M --input="corpus/*.jsonl" --output=DIR
python -m launch.index --model=M --input=F --output=DIR --transform=binary
python -m launch.index --model=M --input=texts.txt --output=DIR --faiss=HNSW32

The folder holds a Parquet file for every --shard_size texts, with the columns id, hash,
file, line, offset (the byte of the text in its file) and vector, which databases read
as they are. The memory is that of two shards, and a command that was stopped goes on
when it is run again. launch.search --index=DIR answers from the folder: exactly, or by
the index that --faiss adds, which has to fit the memory of one machine.
"""

from functools import partial
from pathlib import Path

from absl import flags

from launch import flags as options
from launch import main as cli
from launch.embed_folder import embed_folder
from launch.supervise import supervise
from research import processes
from research.data.corpus import find_corpus, read_texts
from research.inference.index.faiss_index import build_index
from research.inference.index.shard_files import import_pyarrow
from research.inference.index.vector_shards import read_vectors
from research.transforms.codebooks import import_faiss

INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "The texts: a .txt file with a text per line or a .jsonl, .tsv or .csv file, plain "
    "or .gz, or a pattern of such files. The flag may be repeated.",
    required=True,
)
OUTPUT = cli.define_path("output", None, "The folder of the index.", required=True)
SHARD_SIZE = flags.DEFINE_integer(
    "shard_size", 65_536, "The number of texts in a Parquet file.", lower_bound=1
)
ALLOW_EMPTY = flags.DEFINE_bool(
    "allow_empty",
    False,
    "Whether a text may be empty: its special tokens are then embedded.",
)
FAISS = flags.DEFINE_string(
    "faiss",
    None,
    "The index that faiss builds over the vectors, by its name there: HNSW32, "
    "IVF1024,Flat or OPQ96,PQ96x8; with --transform=binary, BFlat, BHNSW32 or BIVF1024."
    " Default: none, the search is exact.",
)
cli.group_flags("Texts", INPUT, ALLOW_EMPTY)
cli.group_flags("Output", OUTPUT, SHARD_SIZE, FAISS)


def main():
    """Writes the shards that the folder lacks, and the index; returns their numbers."""
    # Connect the processes before JAX is used.
    processes.initialize()
    output = Path(OUTPUT.value)
    # Check the flags, the packages and the input before the model is loaded.
    chunk, files = options.parse_single_chunk(), find_corpus(INPUT.value)
    import_pyarrow()
    if FAISS.value is not None:
        import_faiss()
        if chunk is not None:
            raise ValueError(
                f"--faiss={FAISS.value} does not go with --chunk={options.CHUNK.value}"
            )
    # The shards that are not there yet
    embedder, result = embed_folder(
        output,
        files,
        partial(read_texts, allow_blank=ALLOW_EMPTY.value),
        chunk,
        shard_size=SHARD_SIZE.value,
        allow_empty=ALLOW_EMPTY.value,
        format="parquet",
        one_vector=FAISS.value is not None,
    )
    # The index over them, which one process builds
    if FAISS.value is not None:
        build = partial(
            build_index,
            output,
            read_vectors(output),
            FAISS.value,
            similarity=embedder.model.similarity,
            log=cli.log,
        )
        processes.call_on_first(build, "building the index")
        result["faiss"] = FAISS.value
    return result


if __name__ == "__main__":
    supervise()
    cli.run(main)
