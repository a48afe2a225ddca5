"""Tokens that all rows begin with are computed once: the same vectors."""

import dataclasses

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from research.inference import batching
from research.inference.batching import TokenRows, common_prefix_length
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.models import prefix_cache
from research.models.config import modern
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.yarn import Yarn
from research.models.token_prepending import Prepend
from research.text.templates import Prompt
from research.text.tokenization import train_tokenizer
from research.text.tokens import Piece
from research.types import Tokens

LLAMA = modern(
    vocab_size=60, width=32, depth=2, num_heads=4, mlp=48, max_len=128, causal=True
)
LLAMA = dataclasses.replace(LLAMA, num_kv_heads=2, position_methods=())
SHAPES = {
    "llama": LLAMA,
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=16, bias=("qkv",)),
    "gpt2": dataclasses.replace(
        LLAMA, position="learned", norm="layer", gated=False, rope_theta=1e4
    ),
    "yarn": dataclasses.replace(
        LLAMA, position_methods=(Yarn(scale=4.0, original=16),)
    ),
}
COMMON = 16
LENGTHS = np.array([20, 28, 17])


def both(name):
    """Rows [3, 28] that begin alike, and the rest of them [3, 12]."""
    ids = np.random.default_rng(0).integers(4, 60, (3, 28)).astype(np.int32)
    ids[:, :COMMON] = ids[0, :COMMON]

    def tokens(ids, lengths):
        real = jnp.arange(ids.shape[1])[None] < jnp.asarray(lengths)[:, None]
        return Tokens(jnp.asarray(ids), real.astype(jnp.int32), real)

    params = compiled.init(jax.random.key(0), SHAPES[name])
    # Attention that is not flat: larger kernels, but no larger norms.
    params = jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, params)
    whole = tokens(ids, LENGTHS)
    return params, whole, tokens(ids[:, COMMON:], LENGTHS - COMMON)


@pytest.mark.parametrize("name", SHAPES)
def test_states_after_a_prefix(name):
    cfg = SHAPES[name]
    params, whole, rest = both(name)
    want = compiled.forward(params, whole, cfg).hidden_states
    past = prefix_cache.encode_prefix(params, whole.token_ids[0, :COMMON], cfg)
    assert past.value.shape == (2, COMMON, 2, cfg.head_dim)
    got = jax.jit(lambda p: prefix_cache.apply_after_prefix(params, rest, cfg, p)[0])(
        past
    )
    real = np.asarray(rest.pooling_mask)
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(
        np.asarray(got)[real], np.asarray(want)[:, COMMON:][real], atol=1e-5
    )


def test_layers_and_prepended_tokens_after_a_prefix():
    cfg = LLAMA
    params, whole, rest = both("llama")
    target, source = np.int32([17, 20, 16]), np.int32(LENGTHS - 1)
    blocks = np.array([False, True])
    past = prefix_cache.encode_prefix(params, whole.token_ids[0, :COMMON], cfg)
    how = {"every_layer": True, "before_final_norm": True}
    want, got = (
        compiled.encode(
            params,
            tokens,
            cfg,
            BASIC_POOLINGS["last"],
            prepend=Prepend(*map(jnp.asarray, (target - less, source - less, blocks))),
            prefix=None if less == 0 else past,
            **how,
        )
        for tokens, less in ((whole, np.int32(0)), (rest, np.int32(COMMON)))
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def row(start, length):
    return np.concatenate([np.arange(start), np.full(length - start, 99)]).astype("i4")


def test_how_many_tokens_are_shared():
    found = [row(40, 60), row(35, 60), row(50, 70)]  # alike up to the 35th
    assert common_prefix_length(TokenRows(found), pools_last_token=True) == 32
    assert (
        common_prefix_length(TokenRows(found), pools_last_token=False) == 0
    )  # all pool
    assert (
        common_prefix_length(TokenRows(found[:1]), pools_last_token=True) == 0
    )  # one row gains nothing
    assert (
        common_prefix_length(TokenRows([row(15, 60), *found]), pools_last_token=True)
        == 0
    )
    after = [(np.arange(len(x)) >= 20).astype("i4") for x in found]
    assert common_prefix_length(TokenRows(found, after), pools_last_token=False) == 16
    assert common_prefix_length(TokenRows(found, after), pools_last_token=True) == 32
    marks = np.int32([33, 31, 40])
    assert (
        common_prefix_length(TokenRows(found, None, marks), pools_last_token=True) == 16
    )
    long = [row(40, 600), row(50, 700)]
    assert (
        common_prefix_length(TokenRows(long), pools_last_token=True) == 0
    )  # too much memory
    assert (
        common_prefix_length(
            TokenRows([row(40, 40), row(40, 41)]), pools_last_token=True
        )
        == 32
    )  # one is left
    assert (
        common_prefix_length(
            TokenRows(found, [2 * x for x in after]), pools_last_token=True
        )
        == 0
    )


SENTENCE = "the quick brown fox jumps over a lazy dog and runs away"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 7]) for i in range(9)]


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_an_embedder_shares_a_long_prompt(pool, monkeypatch):
    tokenizer = train_tokenizer(WORDS, 60)
    params = compiled.init(jax.random.key(0), LLAMA)
    prompts = {"query": "the lazy dog and the fox " * 3}
    model = EmbeddingModel(params, LLAMA, tokenizer, pool, 128, prompts, True)
    embed = Embedder(model)
    counts = []

    def counted(rows, **options):
        counts.append(common_prefix_length(rows, **options))
        return counts[-1]

    monkeypatch.setattr(batching, "common_prefix_length", counted)
    got = embed(TEXTS, "query")
    monkeypatch.setattr(batching, "common_prefix_length", lambda rows, **options: 0)
    np.testing.assert_allclose(got, embed(TEXTS, "query"), atol=1e-5)
    (count,) = counts
    assert count >= 16 if pool == "last" else count == 0


def test_rows_after_a_prefix_are_spread_over_devices():
    tokenizer = train_tokenizer(WORDS, 60)
    params = compiled.init(jax.random.key(0), LLAMA)
    begin = Piece("the lazy dog and the fox " * 3)
    end = Piece(special="close", pooled=True)
    template = (begin, Piece(special="<PST>"), Piece(is_text=True), end)
    method = Prompt({"query": (template,), "document": (template,)}, "last")
    model = EmbeddingModel(params, LLAMA, tokenizer, "mean", 128, {}, True)
    options = {"prompt": method, "prepend": (1, 2)}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    alone = Embedder(model, **options)
    spread = Embedder(model, **options, mesh=mesh)
    np.testing.assert_allclose(spread(TEXTS, "query"), alone(TEXTS, "query"), atol=1e-5)
