"""Benchmark of a decoder that embeds texts, and of the cost of several prompts."""

import tempfile
from collections.abc import Sequence

import numpy as np

from launch.bench.encode import compare_encoding, load_docstrings
from launch.bench.timing import Turn, time_turns
from research.inference.embedder import Embedder
from research.interop import load
from research.text.prompts import PROMPTS

MAX_CHARS = 400  # longer docstrings are left out
# Qwen2-0.5B (Yang et al. 2024, table 1).
QWEN2 = {
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


def llm(model: str, count: int, blocks: int, rounds: int) -> dict:
    """Embeds docstrings with a random decoder: with both libraries, then with prompts.

    Args:
        model: Model whose tokenizer is used.
        count: Number of docstrings.
        blocks: Number of blocks of the decoder.
        rounds: Number of timed runs of each library and each prompt.
    """
    # Short docstrings; both libraries first, then Embax with each prompt.
    texts = [text for text in load_docstrings() if len(text) < MAX_CHARS][:count]
    with tempfile.TemporaryDirectory() as folder:
        save_qwen2(folder, str(load.resolve_folder(model)), blocks)
        result = compare_encoding(folder, texts, batch_size=8, rounds=rounds)
        seconds = time_turns(make_method_turns(folder, texts), rounds)
    return {
        "blocks": blocks,
        **result,
        "method_seconds": seconds,
        "echo_cost": seconds["echo"] / seconds["classical"],
        "prepending_cost": seconds["prepending"] / seconds["prompteol"],
    }


def save_qwen2(folder: str, tokenizer: str, depth: int) -> None:
    """Saves a random Qwen2-0.5B as a sentence-transformers folder.

    Args:
        folder: Folder to write to.
        tokenizer: Model folder with a tokenizer.
        depth: Number of blocks.
    """
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules

    # Random weights, the given tokenizer, last-token pooling.
    config = transformers.Qwen2Config(**QWEN2 | {"num_hidden_layers": depth})
    body = f"{folder}/body"
    transformers.Qwen2Model(config).save_pretrained(body)
    transformers.AutoTokenizer.from_pretrained(
        tokenizer, model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(body)
    transformer = modules.Transformer(body, max_seq_length=512)
    width = transformer.get_word_embedding_dimension()
    pooling = modules.Pooling(width, "lasttoken")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(folder)


def make_method_turns(folder: str, texts: Sequence[str]) -> dict[str, Turn]:
    """Functions to time that embed the texts with no prompt, echo, and PromptEOL.

    "prepending" is token prepending over the first half of the blocks; its published
    baseline, "prompteol", has no <PST>.
    """
    model = load.load(folder)
    one_word = PROMPTS["prompteol"]
    methods = {
        "classical": {},
        "echo": {"prompt": PROMPTS["echo"](pool="last")},
        "prompteol": {"prompt": one_word()},
        "prepending": {
            "prompt": one_word(prepend=True),
            "prepend": (1, model.config.depth // 2),
        },
    }

    def make_turn(options: dict) -> Turn:
        embed = Embedder(model, **options)
        return lambda turn: np.asarray(embed(texts, "query"))

    return {name: make_turn(options) for name, options in methods.items()}
