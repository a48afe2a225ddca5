"""How well a causal model predicts texts that it has not seen."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.data.corpus import read_corpus
from research.inference.batching import batch_sizes, length_batches
from research.inference.embedder import placed
from research.models.config import EncoderConfig
from research.objectives.causal import next_tokens
from research.text import tokenization
from research.types import Array, Params, Tokens

# measure(params, cfg, tokenizer, max_length, mesh) -> scores of the encoder itself,
# where an evaluator reads its embeddings only.
Measure = Callable[..., Mapping[str, float]]


def perplexity(*, data: str = "pydocs", documents: int = 200, seed: int = 0) -> Measure:
    """The perplexity of held-out texts, by token, byte and character.

    A text is cut into windows of the model's length that share nothing, each after the
    tokenizer's opening tokens, which are not predicted; with a tokenizer of none a
    window begins with the last token of the one before, and the first token of a text
    is given. Only the values by byte and by character compare tokenizers.

    Args:
        data: what `corpus.read_corpus` reads; "pydocs" is code of Python packages that
            are never trained on.
        documents: texts that are read, at most.
        seed: of their choice.

    Returns:
        the measure of documents, tokens, loss (nats of a token), perplexity,
        bits_per_byte, byte_perplexity and character_perplexity.

    Raises:
        ValueError: there is no text to read; on a call, an encoder that is not causal.
    """
    _, found = read_corpus(data)
    order = np.random.default_rng(seed).permutation(len(found))[: max(0, documents)]
    chosen = [found[i] for i in sorted(order)]
    if not chosen:
        raise ValueError(f"perplexity of {documents} documents: there is none to read")

    def measure(
        params: Params,
        cfg: EncoderConfig,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        mesh: Mesh | None = None,
    ) -> Mapping[str, float]:
        if not cfg.causal:
            raise ValueError(
                "perplexity is of a causal model; the encoder of this one sees what it "
                "should predict"
            )
        rows, given = windows(tokenizer, chosen, max_length)
        nats, tokens = _summed(params, cfg, rows, given, mesh)
        return {"documents": len(chosen), **_scores(nats, tokens, chosen)}

    return measure


def windows(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], max_length: int
) -> tuple[list[np.ndarray], int]:
    """Rows of at most `max_length` ids, and how many at their start are given.

    Raises:
        ValueError: such a row has no room for a token that is predicted.
    """
    opening = tokenization.enclosing_tokens(tokenizer)[0]
    given = max(1, len(opening))
    room = max_length - given
    if room < 1:
        raise ValueError(
            f"max_length {max_length} leaves no token to predict beside {given} given"
        )
    rows = []
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        rows += _cut(np.array(encoding.ids, np.int32), opening, room)
    return rows, given


def _cut(ids: np.ndarray, opening: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """The windows of a text, each with `room` tokens to predict at most."""
    first = 0 if len(opening) else 1
    for start in range(first, len(ids), room):
        before = opening if len(opening) else ids[start - 1 : start]
        yield np.concatenate([before, ids[start : start + room]])


def _summed(
    params: Params,
    cfg: EncoderConfig,
    rows: Sequence[np.ndarray],
    given: int,
    mesh: Mesh | None,
) -> tuple[float, int]:
    """(nats, tokens) of all predictions of the rows."""
    params = placed(params, mesh)
    place = jnp.asarray
    if mesh is not None:
        place = partial(jax.device_put, device=NamedSharding(mesh, P("data")))
    lengths = np.array([len(row) for row in rows])
    nats = 0.0
    for chosen, count, length in length_batches(lengths, *batch_sizes(cfg, None, mesh)):
        ids = np.zeros((count, length), np.int32)
        sizes = np.zeros(count, np.int32)
        for i, number in enumerate(chosen):
            ids[i, : lengths[number]] = rows[number]
            sizes[i] = lengths[number]
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            found = _nats(params, place(ids), place(sizes), cfg=cfg, given=given)
        nats += float(np.asarray(found, np.float64).sum())
    return nats, int((lengths - given).sum())


@partial(jax.jit, static_argnames=("cfg", "given"))
def _nats(
    params: Params, ids: Array, lengths: Array, *, cfg: EncoderConfig, given: int
) -> Array:
    """[R] cross-entropy of the tokens of each row after those that are given."""
    real = jnp.arange(ids.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    tokens = Tokens(ids, real.astype(jnp.int32), real)
    _, each = next_tokens(params, tokens, cfg)
    return each.loss[:, given - 1 :].sum(1)


def _scores(nats: float, tokens: int, texts: Sequence[str]) -> dict[str, float]:
    size = sum(len(part.encode("utf-8", "surrogatepass")) for part in texts)
    characters = sum(map(len, texts))
    return {
        "tokens": tokens,
        "loss": nats / max(tokens, 1),
        "perplexity": math.exp(nats / max(tokens, 1)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "byte_perplexity": math.exp(nats / max(size, 1)),
        "character_perplexity": math.exp(nats / max(characters, 1)),
    }


MODEL_EVALS = {"perplexity": perplexity}
