"""What `launch.aot` compiles: training and embedding steps, and the slices for them.

The models have the shapes of published ones and no weights; the texts are random words,
whose numbers per text are those of captions, passages and long documents.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import ml_collections

from configs.common import make_base, starbucks_pairs
from configs.lora_llm import get_config as lora_llm
from research.atomic_write import atomic_write, to_json
from research.config_sections import section
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES
from research.experiment.config_keys import CONTRASTIVE_KEYS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.models.config import EncoderConfig, bert
from research.objectives.registry import OBJECTIVES

# {name: topology of libtpu}. A v5p is named by its cores, of which a chip has two.
SLICES = {
    "v5e-1": "v5e:1x1",
    "v5e-4": "v5e:2x2",
    "v5e-16": "v5e:4x4",
    "v5e-64": "v5e:8x8",
    "v5e-256": "v5e:16x16",
    "v5p-128": "v5p:4x4x4",
    "v6e-256": "v6e:16x16",
}
TABLE_SLICES = ("v5e-256", "v5e-16", "v6e-256", "v5p-128")
SCALING_SLICES = ("v5e-16", "v5e-256", "v5e-1", "v5e-64", "v5e-4")
BERT_BASE = {"vocab_size": 30_522, "width": 768, "depth": 12, "num_heads": 12}
BERT_BASE |= {"mlp": 3_072, "max_len": 512, "dtype": "bfloat16"}
# ModernBERT-base (Warner et al. 2024): every third block attends to the full text.
MODERN_BASE = {"vocab_size": 50_368, "width": 768, "depth": 22, "num_heads": 12}
MODERN_BASE |= {"mlp": 1_152, "max_len": 8_192, "window": 64, "global_every": 3}
MODERN_BASE |= {"dtype": "bfloat16", "rope_theta": 160_000.0, "act": "gelu"}
EMBED_LENGTH, EMBED_ROWS = 128, 256  # tokens and rows per chip when embedding


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile.

    Attributes:
        title: What it is, for the table.
        slices: Names of the slices that it is compiled for, the most important first.
        config: (folder of texts, number of chips) -> config of a training run; None
            for embedding.
    """

    title: str
    slices: Sequence[str] = TABLE_SLICES
    config: Callable[[Path, int], ml_collections.ConfigDict] | None = None


def make_embedding_encoder() -> EncoderConfig:
    """The encoder that embeds a corpus: BERT-base in bfloat16."""
    return bert(**BERT_BASE)


def make_starbucks(folder: Path, chips: int, *, pairs: int = 0, per_chip: int = 0):
    """Config of Starbucks fine-tuning on triplets, with `pairs` of them or per chip."""
    config = make_base()
    config.batch_size = pairs or per_chip * chips
    config.tokenizer = section(TOKENIZERS, "trained")
    config.encoder = section(ENCODERS, "bert", **BERT_BASE)
    config.loss = section(LOSSES, "infonce", temperature=0.05)
    config.size_loss = section(
        SIZE_LOSSES, "starbucks_sts", pairs=starbucks_pairs(config)
    )
    # More pairs than this on a chip are encoded in several chunks
    config.objective.micro_batch = 512
    config.data = {"captions": section(SOURCES, "files", path=_write_captions(folder))}
    return config


def make_smae(folder: Path, chips: int):
    """Config of Starbucks' pre-training: 16 rows of 512 tokens per chip."""
    config = _pre_training(folder, rows=16 * chips, length=512)
    config.encoder = section(ENCODERS, "bert", **BERT_BASE, dropout=0.0)
    config.objective = section(OBJECTIVES, "smae", pairs=starbucks_pairs(config))
    return config


def make_long_context(folder: Path, chips: int):
    """Config of masked language modeling on one row of 8,192 tokens per chip."""
    config = _pre_training(folder, rows=chips, length=8_192)
    config.encoder = section(ENCODERS, "modern", **MODERN_BASE)
    config.objective = section(OBJECTIVES, "mlm")
    return config


def make_mistral_lora(folder: Path, chips: int):
    """Config of LoRA on the shape of Mistral-7B: 2,048 pairs of up to 512 tokens."""
    del chips
    config = lora_llm("shape=mistral7b,batch=2048")
    config.max_length = 512
    config.objective.micro_batch = 32
    config.data = {"passages": section(SOURCES, "files", path=_write_passages(folder))}
    return config


CASES = {
    "starbucks_16k": Case(
        "Starbucks, BERT-base, 16,384 triplets",
        config=partial(make_starbucks, pairs=16_384),
    ),
    "lora_7b": Case("LoRA of a 7B decoder, 2,048 triplets", config=make_mistral_lora),
    "starbucks_64": Case(
        "Starbucks, BERT-base, 64 triplets a chip",
        SCALING_SLICES,
        partial(make_starbucks, per_chip=64),
    ),
    "smae": Case("SMAE, BERT-base, 16 x 512 tokens a chip", config=make_smae),
    "embed": Case("embedding, BERT-base, 256 x 128 tokens a chip"),
    "long_8k": Case(
        "MLM, ModernBERT-base, 8,192 tokens a chip", config=make_long_context
    ),
    "starbucks_64k": Case(
        "Starbucks, BERT-base, 65,536 triplets",
        config=partial(make_starbucks, pairs=65_536),
    ),
}


def _pre_training(folder: Path, *, rows: int, length: int):
    """The common part of configs for pre-training on long documents."""
    config = make_base()
    for key in CONTRASTIVE_KEYS:
        del config[key]
    config.batch_size, config.max_length = rows, length
    config.tokenizer = section(TOKENIZERS, "trained")
    config.row_layout = section(ROW_LAYOUTS, "packed")
    config.data = {"texts": section(SOURCES, "texts", path=_write_documents(folder))}
    return config


def _write_captions(folder: Path) -> str:
    """Writes 70,000 triplets of about 20 words a text, once; returns the path."""
    return _write_once(
        folder / "captions.jsonl", lambda draw: _draw_triplets(draw, 70_000, 20)
    )


def _write_passages(folder: Path) -> str:
    """Writes 4,096 triplets with passages of about 120 words, once."""
    return _write_once(
        folder / "passages.jsonl", lambda draw: _draw_triplets(draw, 4_096, 120)
    )


def _write_documents(folder: Path) -> str:
    """Writes 320 documents of 9,000 words, once."""
    return _write_once(
        folder / "documents.txt", lambda draw: (draw(9_000) for _ in range(320))
    )


def _draw_triplets(draw: Callable[[float], str], count: int, words: int):
    for _ in range(count):
        texts = {"query": draw(20), "pos": [draw(words)], "neg": [draw(words)]}
        yield to_json(texts)


def _write_once(path: Path, make_lines) -> str:
    if not path.exists():
        rng = random.Random(0)
        vocabulary = ["".join(rng.choices("aeioulnrst", k=5)) for _ in range(2_000)]

        def draw(words: float) -> str:
            count = max(3, round(words * rng.lognormvariate(0, 0.4)))
            return " ".join(rng.choices(vocabulary, k=count))

        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial_path:
            partial_path.write_text("".join(f"{line}\n" for line in make_lines(draw)))
    return str(path)
