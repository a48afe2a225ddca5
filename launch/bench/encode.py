"""Benchmark of embedding, against `SentenceTransformer.encode` with equal weights."""

import dataclasses
import tempfile
from collections.abc import Sequence

import numpy as np

from launch.bench.timing import compare_turns
from research.inference.batching import choose_batch_sizes, group_by_length
from research.inference.embedder import Embedder
from research.interop import load


def encode(model: str, count: int, rounds: int) -> dict:
    """Embeds `count` docstrings with Embax and with sentence-transformers."""
    texts = load_docstrings()[:count]
    return compare_encoding(model, texts, batch_size=32, rounds=rounds)


def encode_long(model: str, count: int, length: int, rounds: int) -> dict:
    """Embeds long documents with both libraries, with a random ModernBERT.

    Args:
        model: Model whose tokenizer is used.
        count: Number of documents.
        length: Number of tokens per document.
        rounds: Number of timed runs of each library.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_modernbert(folder, model, length)
        corpus = " ".join(load_docstrings())
        token_ids = tokenizer(corpus, add_special_tokens=False)["input_ids"]
        # Every document is longer than the model's maximum, and is truncated.
        size = length - 2
        documents = [token_ids[i * size : (i + 2) * size] for i in range(count)]
        texts = list(map(tokenizer.decode, documents))
        # The peer is fastest with one text at a time: no padding and less memory.
        result = compare_encoding(folder, texts, batch_size=1, rounds=rounds)
    return {"tokens": length, **result}


def load_docstrings() -> list[str]:
    """Docstrings of the installed Python packages, from the training split."""
    from research.data.sources import SOURCES

    return [example.query for example in SOURCES["pydocs"](split="train").examples]


def save_modernbert(folder: str, model: str, length: int):
    """Saves a random ModernBERT of MiniLM's size; returns its tokenizer.

    Args:
        folder: Folder to write to.
        model: Model whose tokenizer is used.
        length: Maximum number of tokens of a text.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        load.resolve_folder(model),
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )
    # The sizes of all-MiniLM-L6-v2.
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


def compare_encoding(
    name: str,
    texts: Sequence[str],
    *,
    batch_size: int,
    rounds: int,
    device: str = "cpu",
    bfloat16: bool = False,
    max_length: int | None = None,
) -> dict:
    """Times the embedding of texts with Embax and with sentence-transformers.

    Args:
        name: Name of the model.
        texts: N texts.
        batch_size: Batch size of sentence-transformers.
        rounds: Number of timed runs of each library.
        device: Torch device of sentence-transformers.
        bfloat16: Whether both compute in bfloat16.
        max_length: Maximum number of tokens of a text; None for the model's own.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    model = load.load(name)
    peer = SentenceTransformer(str(load.resolve_folder(name)), device=device)
    if bfloat16:
        config = dataclasses.replace(model.config, dtype="bfloat16")
        model, peer = model._replace(config=config), peer.bfloat16()
    if max_length is not None:
        peer.max_seq_length = max_length
    embed = Embedder(model, max_length=max_length)
    vectors = {}  # [N, D] of each library

    def run_ours(turn):
        vectors["ours"] = embed(texts, "document")

    def run_theirs(turn):
        vectors["theirs"] = peer.encode(
            texts, batch_size=batch_size, normalize_embeddings=model.normalize
        )

    # Texts per second, and the largest difference between the vectors.
    result = compare_turns(run_ours, run_theirs, rounds)
    rates = {side: len(texts) / s for side, s in result["seconds"].items()}
    difference = np.abs(vectors["ours"] - vectors["theirs"]).max()
    rows = embed.tokenize(texts, "document").rows[0].token_ids
    lengths = np.array([len(row) for row in rows])
    return {
        "texts": len(texts),
        "texts_per_second": rates,
        "tokens_in_batches": count_padded_tokens(
            lengths, model.config.max_len, batch_size
        ),
        "largest_difference": float(difference),
        "torch_threads": torch.get_num_threads(),
        **result,
    }


def count_padded_tokens(
    lengths: np.ndarray, max_length: int, batch_size: int
) -> dict[str, int]:
    """Tokens of texts, and with the padding of each library's batches on a CPU.

    Args:
        lengths: [N] number of tokens of each text.
        max_length: Maximum length of a row.
        batch_size: Batch size of sentence-transformers, which sorts texts by length and
            pads each batch to its longest one.
    """
    sizes = choose_batch_sizes(max_length, None, None)
    ours = sum(rows * length for _, rows, length in group_by_length(lengths, sizes))
    descending = np.sort(lengths)[::-1]
    starts = range(0, len(lengths), batch_size)
    theirs = sum(descending[i] * len(descending[i : i + batch_size]) for i in starts)
    return {"texts": int(lengths.sum()), "ours": int(ours), "theirs": int(theirs)}
