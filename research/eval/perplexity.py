"""Perplexity of a causal language model on held-out texts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh

from research.data.corpus import read_corpus
from research.inference.batching import (
    TokenRows,
    choose_batch_sizes,
    group_by_length,
)
from research.inference.forward import place_params, place_rows
from research.inference.tokenize import check_token_ids
from research.models.config import EncoderConfig
from research.objectives.causal import next_token_loss
from research.text import tokenization
from research.types import Array, ModelEvaluator, Params, Tokens


def perplexity(
    *, data: str = "pydocs", documents: int = 200, seed: int = 0
) -> ModelEvaluator:
    """The perplexity of held-out texts, per token, byte and character.

    A text is cut into disjoint windows of the model's maximum length. Each window
    begins with the tokenizer's opening tokens, which are not predicted. If there are
    none, it begins with the last token of the window before, and the first token of the
    text is not predicted. To compare models with different tokenizers, use the values
    per byte or per character.

    Args:
        data: Corpus, as `corpus.read_corpus` reads it; "pydocs" is code of held-out
            Python packages.
        documents: Maximum number of texts.
        seed: int of the choice of texts.

    Returns:
        An evaluator that returns documents, tokens, loss (nats per token), perplexity,
        bits_per_byte, byte_perplexity and character_perplexity. Logits come from the
        output layer `params["lm_head"]` or, if there is none, from the token table.

    Raises:
        ValueError: There is no text; when the evaluator is called, the model is not
            causal, or a token is beyond its table.
    """
    # A random sample of the texts, in their order.
    _, texts = read_corpus(data)
    order = np.random.default_rng(seed).permutation(len(texts))[: max(0, documents)]
    sample = [texts[i] for i in sorted(order)]
    if not sample:
        raise ValueError(f"perplexity of {documents} documents: there is none to read")

    def evaluate(
        params: Params,
        cfg: EncoderConfig,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        mesh: Mesh | None = None,
    ) -> Mapping[str, float]:
        if not cfg.causal:
            raise ValueError(
                "perplexity needs a causal model; this encoder's attention includes "
                "the tokens that it should predict"
            )
        rows, given_tokens = cut_windows(tokenizer, sample, max_length)
        check_token_ids(
            TokenRows(rows),
            tokenizer,
            len(params["embed"]["token"]["embedding"]),
            lambda row: f"{data} window {row + 1}",
        )
        nats, tokens = _sum_losses(params, cfg, rows, given_tokens, mesh)
        return {"documents": len(sample), **_normalize_loss(nats, tokens, sample)}

    return ModelEvaluator(evaluate)


def cut_windows(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], max_length: int
) -> tuple[list[np.ndarray], int]:
    """Cuts texts into rows of at most `max_length` token ids.

    Returns:
        The rows, and the number of tokens at the start of each that only give context
        and are not predicted.

    Raises:
        ValueError: `max_length` leaves no room for a token to predict.
    """
    # Tokens that only give context.
    opening = tokenization.enclosing_tokens(tokenizer)[0]
    given_tokens = max(1, len(opening))
    room = max_length - given_tokens
    if room < 1:
        raise ValueError(
            f"max_length {max_length} leaves no token to predict beside "
            f"{given_tokens} given"
        )
    # The windows of all texts.
    rows = []
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        rows += _text_windows(np.array(encoding.ids, np.int32), opening, room)
    return rows, given_tokens


def _text_windows(
    token_ids: np.ndarray, opening: np.ndarray, room: int
) -> Iterator[np.ndarray]:
    """The windows of a text, each with at most `room` tokens to predict."""
    # Without opening tokens, the first token of the text is not predicted.
    first = 0 if len(opening) else 1
    for start in range(first, len(token_ids), room):
        context = opening if len(opening) else token_ids[start - 1 : start]
        yield np.concatenate([context, token_ids[start : start + room]])


def _sum_losses(
    params: Params,
    cfg: EncoderConfig,
    rows: Sequence[np.ndarray],
    given_tokens: int,
    mesh: Mesh | None,
) -> tuple[float, int]:
    """(total cross-entropy of all rows in nats, number of predicted tokens)."""
    params = place_params(params, mesh)
    lengths = np.array([len(row) for row in rows])
    nats = 0.0
    # Batches of rows of similar lengths; rows that only pad a batch have length 0.
    sizes = choose_batch_sizes(cfg.max_len, None, mesh)
    for numbers, count, length in group_by_length(lengths, sizes):
        token_ids = np.zeros((count, length), np.int32)
        row_lengths = np.zeros(count, np.int32)
        for i, number in enumerate(numbers):
            token_ids[i, : lengths[number]] = rows[number]
            row_lengths[i] = lengths[number]
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            losses = _row_losses(
                params,
                place_rows(token_ids, mesh),
                place_rows(row_lengths, mesh),
                cfg=cfg,
                given_tokens=given_tokens,
            )
        nats += float(np.asarray(losses, np.float64).sum())
    return nats, int((lengths - given_tokens).sum())


@partial(jax.jit, static_argnames=("cfg", "given_tokens"))
def _row_losses(
    params: Params,
    token_ids: Array,
    lengths: Array,
    *,
    cfg: EncoderConfig,
    given_tokens: int,
) -> Array:
    """[R] total cross-entropy of each row's tokens after the given ones."""
    index = jnp.arange(token_ids.shape[1], dtype=jnp.int32)
    valid = index[None] < lengths[:, None]  # [R, S]
    tokens = Tokens(token_ids, valid.astype(jnp.int32), valid)
    _, predictions = next_token_loss(params, tokens, cfg)
    # [R, S-1] losses; those of the given tokens are left out.
    return predictions.loss[:, given_tokens - 1 :].sum(1)


def _normalize_loss(nats: float, tokens: int, texts: Sequence[str]) -> dict[str, float]:
    """Loss and perplexity per token, byte and character."""
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    characters = sum(map(len, texts))
    return {
        "tokens": tokens,
        "loss": nats / max(tokens, 1),
        "perplexity": math.exp(nats / max(tokens, 1)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "byte_perplexity": math.exp(nats / max(size, 1)),
        "character_perplexity": math.exp(nats / max(characters, 1)),
    }
