"""Workloads of the accelerator check: texts, shapes and configs, full size or tiny."""

import gzip
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from launch.bench.train_step import load_recipe
from research.atomic_write import to_json
from research.config_sections import section
from research.data.sources import SOURCES
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.objectives.tuning import TUNING
from research.text import tokenization

# BERT-base (Devlin et al. 2019) and Qwen2-0.5B (Yang et al. 2024, table 1).
BERT = {
    "vocab_size": 30_522,
    "width": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp": 3_072,
    "max_len": 512,
}
QWEN2 = {
    "vocab_size": 151_936,
    "width": 896,
    "depth": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "mlp": 4_864,
    "max_len": 512,
    "window": 0,
    "bias": ("qkv",),
    "norm_eps": 1e-6,
    "rope_theta": 1e6,
}
TINY_BERT = BERT | {"vocab_size": 512, "width": 48, "depth": 6, "num_heads": 2}
TINY_BERT |= {"mlp": 96, "max_len": 128}
TINY_QWEN2 = QWEN2 | {"vocab_size": 512, "width": 48, "depth": 2, "num_heads": 2}
TINY_QWEN2 |= {"num_kv_heads": 1, "mlp": 96, "max_len": 128}
# Sizes (depth, dim) of Starbucks (Zhuang et al. 2024), relative to 12 x 768.
SIZES = ((2, 32), (4, 64), (6, 128), (8, 256), (10, 512), (12, 768))
FILES = {
    "passages": "pairs/openstax_heading_paragraph.jsonl.gz",
    "nli": "nli/triplets.jsonl.gz",
}
# Words of a written text: mean of the logarithm, its deviation; anchor, then others.
LENGTHS = {"passages": ((2.0, 0.4), (4.6, 0.5)), "nli": ((2.5, 0.5), (2.0, 0.4))}


class Setting(NamedTuple):
    """How a part of the check is run.

    Attributes:
        tiny: Whether everything is small enough for a CPU.
        data: Folder of the text sets; texts that are not there are written.
        scratch: Folder that the parts share.
        model: Folder of a 12-layer embedder for the ablation; None for none.
    """

    tiny: bool
    data: Path
    scratch: Path
    model: Path | None = None

    @property
    def timing(self) -> dict[str, int]:
        """Arguments of `time_steps`: few steps if tiny."""
        return {"warm_up": 0, "rounds": 1, "max_steps": 1} if self.tiny else {}

    @property
    def bert(self) -> dict[str, Any]:
        """Shape of the encoder."""
        return dict(TINY_BERT if self.tiny else BERT)

    @property
    def qwen2(self) -> dict[str, Any]:
        """Shape of the decoder."""
        return dict(TINY_QWEN2 if self.tiny else QWEN2)

    def find_text_file(self, name: str) -> Path:
        """File of the texts 'passages' or 'nli', written with random words if absent.

        Raises:
            OSError: The file cannot be written.
        """
        path = self.data / FILES[name]
        if path.exists() and not self.tiny:
            return path
        path = self.scratch / f"{name}.jsonl.gz"
        if not path.exists():
            count = 300 if self.tiny else 10_000
            _write_texts(path, name, count)
        return path

    def find_sts_file(self) -> Path:
        """File of scored pairs: STS-B test, or pairs of random words if tiny."""
        if not self.tiny:
            return self.data / "stsb/test.jsonl.gz"
        path = self.scratch / "sts.jsonl"
        rows = self.read_texts("nli")[:40]
        lines = [
            {"sentence1": r["anchor"], "sentence2": r["positive"], "score": i % 6}
            for i, r in enumerate(rows)
        ]
        path.write_text("".join(to_json(line) + "\n" for line in lines))
        return path

    def describe_texts(self, name: str) -> str:
        """Where the texts are from."""
        path = self.find_text_file(name)
        return FILES[name] if path.parent != self.scratch else "random words"

    def read_texts(self, name: str) -> list[dict[str, str]]:
        """The lines of a text set."""
        with gzip.open(self.find_text_file(name), "rt") as file:
            return [json.loads(line) for line in file]

    def load_tokenizer(self) -> tokenizers.Tokenizer:
        """WordPiece tokenizer of the passages; the first part that asks trains it."""
        path = self.scratch / "tokenizer.json"
        if not path.exists():
            texts = [t for row in self.read_texts("passages") for t in row.values()]
            vocab = self.bert["vocab_size"]
            trained = tokenization.train_tokenizer(texts, vocab)
            # Another process may be doing the same
            draft = path.with_suffix(f".{os.getpid()}")
            trained.save(str(draft))
            draft.replace(path)
        return tokenization.load_tokenizer(self.scratch)


def _write_texts(path: Path, name: str, count: int) -> None:
    """Writes texts of random words, whose frequencies follow Zipf's law."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbg"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 20_000)]
    fields = ("anchor", "positive", "negative")[: 3 if name == "nli" else 2]
    draft = path.with_suffix(f".{os.getpid()}")
    with gzip.open(draft, "wt") as file:
        for _ in range(count):
            row = {}
            for number, field in enumerate(fields):
                size = int(rng.lognormal(*LENGTHS[name][min(number, 1)])) + 2
                ranks = np.minimum(rng.zipf(1.2, size) - 1, len(words) - 1)
                row[field] = " ".join(words[rank] for rank in ranks)
            file.write(to_json(row) + "\n")
    draft.replace(path)


def starbucks_config(
    setting: Setting, texts: str, batch_size: int, length: int = 128, **encoder
):
    """Config of Starbucks fine-tuning of a random BERT-base.

    Args:
        setting: Sizes and folders.
        texts: 'passages' or 'nli'.
        batch_size: Number of pairs or triplets.
        length: Number of tokens of a packed row, and the longest of a text.
        **encoder: Fields of the encoder's section, such as dropout and attention.
    """
    config = load_recipe("configs/starbucks_sts.py", "tiny")
    config.batch_size = batch_size
    config.max_length = 32 if setting.tiny else length
    config.steps = 1_000
    config.tokenizer = section(TOKENIZERS, "trained", vocab=setting.bert["vocab_size"])
    shape = {**setting.bert, "dtype": "bfloat16"}
    config.encoder = section(ENCODERS, "bert", **shape | encoder)
    source = section(SOURCES, "files", path=str(setting.find_text_file(texts)))
    config.data = {texts: source}
    pairs = tuple(
        (max(1, setting.bert["depth"] * d // 12), setting.bert["width"] * w // 768)
        for d, w in SIZES
    )
    config.size_loss = section(SIZE_LOSSES, "starbucks_sts", pairs=pairs)
    return config


def lora_config(setting: Setting, batch_size: int, **encoder):
    """Config of LoRA tuning of a random Qwen2-0.5B on NLI triplets, as lora_llm.py.

    Args:
        setting: Sizes and folders.
        batch_size: Number of triplets.
        **encoder: Fields of the encoder's section, such as remat.
    """
    config = load_recipe("configs/lora_llm.py", "tiny")
    config.batch_size, config.steps = batch_size, 1_000
    config.max_length = 32 if setting.tiny else 128
    config.objective.micro_batch = 0
    config.loss = section(LOSSES, "infonce", temperature=0.02)
    config.tokenizer = section(TOKENIZERS, "trained", vocab=setting.bert["vocab_size"])
    shape = {"dtype": "bfloat16", "dropout": 0.0}
    config.encoder = section(ENCODERS, "decoder", **setting.qwen2 | shape | encoder)
    source = section(SOURCES, "files", path=str(setting.find_text_file("nli")))
    config.data = {"nli": source}
    lora = {"rank": 16, "alpha": 32.0, "base_dtype": "bfloat16"}
    config.tuning = section(TUNING, "lora", **lora)
    return config


def make_bert_config(shape: dict[str, Any], dropout: float = 0.1):
    """The transformers config of a BERT of a shape such as `BERT`."""
    import transformers

    return transformers.BertConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["num_heads"],
        intermediate_size=shape["mlp"],
        max_position_embeddings=shape["max_len"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
