"""What `launch.bench llm` measures: a decoder that embeds, and its methods' cost."""

from collections.abc import Callable, Sequence

import numpy as np

from research.inference.embedder import Embedder
from research.interop import load
from research.text.prompts import PROMPTS

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


def qwen2(folder: str, tokenizer: str, depth: int) -> None:
    """Saves a sentence-transformers folder: a random Qwen2-0.5B, its first blocks.

    Args:
        folder: where to.
        tokenizer: a model folder with a tokenizer.
        depth: how many blocks.
    """
    import transformers
    from sentence_transformers import SentenceTransformer, models

    config = transformers.Qwen2Config(**QWEN2 | {"num_hidden_layers": depth})
    body = f"{folder}/body"
    transformers.Qwen2Model(config).save_pretrained(body)
    transformers.AutoTokenizer.from_pretrained(
        tokenizer, model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(body)
    first = models.Transformer(body, max_seq_length=512)
    pooling = models.Pooling(first.get_word_embedding_dimension(), "lasttoken")
    SentenceTransformer(modules=[first, pooling], device="cpu").save(folder)


def costs(folder: str, texts: Sequence[str]) -> dict[str, Callable[[int], None]]:
    """Turns of embedding the texts: as they are, twice, and asked for one word.

    Token prepending runs over the first half of the blocks; "prompteol" has the same
    prompt, with its <PST>, and copies nothing.
    """
    model = load.load(folder)
    window = (1, model.config.depth // 2)
    asked = PROMPTS["prompteol"](prepend=True)
    ways = {
        "classical": {},
        "echo": {"prompt": PROMPTS["echo"](pool="last")},
        "prompteol": {"prompt": asked},
        "prepending": {"prompt": asked, "prepend": window},
    }
    embedders = {name: Embedder(model, **options) for name, options in ways.items()}

    def turn(embed):
        return lambda number: np.asarray(embed(texts, "query"))

    return {name: turn(embed) for name, embed in embedders.items()}
