import dataclasses

import compiled
import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from research.inference.batching import BatchSizes, group_by_length, padded_length
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.models.config import EncoderConfig
from research.sharding import make_mesh
from research.text.chunking import parse_chunking
from research.text.templates import Prompt
from research.text.tokenization import tokenize_texts, train_tokenizer
from research.text.tokens import Piece
from research.transforms.linear import LinearMap
from research.transforms.pipeline import VectorTransform
from research.types import Tokens

SENTENCE = "the quick brown fox jumps over a lazy dog and runs away"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 7] * (1 + i % 3)) for i in range(21)]
CONFIG = EncoderConfig(
    vocab_size=64, width=16, depth=3, num_heads=2, mlp=32, max_len=40
)


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer(WORDS, 64)
    cfg = CONFIG
    return compiled.init(jax.random.key(1), cfg), cfg, tokenizer


def embedder(model, prompts=None, **options):
    plain = EmbeddingModel(*model, "mean", 32, prompts or {}, normalize=True)
    return Embedder(plain, **options)


def test_order_batch_size_and_neighbours_change_nothing(model):
    small, large = (embedder(model, batch_tokens=n) for n in (16, 4096))
    x = small(TEXTS, "query")
    assert x.shape == (21, 16)
    assert x.dtype == np.float32
    np.testing.assert_allclose(large(TEXTS, "query"), x, atol=1e-5)
    np.testing.assert_allclose(small(TEXTS[::-1], "query")[::-1], x, atol=1e-5)
    np.testing.assert_allclose(small(TEXTS[4:5], "query"), x[4:5], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("copies", [8, 4])
def test_spread_over_devices(model, copies):
    """Rows over copies of the model, and each copy over 8 / copies devices."""
    mesh = make_mesh({"data": copies, "model": 8 // copies})
    x = embedder(model)(TEXTS, "query")
    spread = embedder(model, mesh=mesh, batch_tokens=32)
    np.testing.assert_allclose(spread(TEXTS, "query"), x, atol=1e-6)
    kernel = spread._row_encoders[0].params["layers"]["query"]["kernel"]
    heads = kernel.addressable_shards[0].data.shape[-2]
    assert heads == 2 * copies // 8


def test_prompts_go_before_the_texts_of_their_role(model):
    plain = embedder(model)
    prompted = embedder(model, prompts={"query": "the dog "})
    np.testing.assert_allclose(
        prompted(TEXTS, "query"),
        plain(["the dog " + text for text in TEXTS], "query"),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        prompted(TEXTS, "document"), plain(TEXTS, "document"), atol=1e-5
    )


def test_long_texts_are_cut_as_their_tokens_say(model):
    cut = embedder(model, max_length=5)
    long, short = "quick brown fox jumps over", "quick brown fox"
    np.testing.assert_allclose(cut([long], "query"), cut([short], "query"), atol=1e-5)


def test_depth_and_dim_are_slices_of_the_grid(model):
    grid = embedder(model, depths=(0, 1, 3), normalize=False)(SHORT, "query")
    assert grid.shape == (3, 3, 16)
    raw = embedder(model, normalize=False)(SHORT, "query")
    np.testing.assert_allclose(grid[:, 2], raw, atol=1e-5)
    small = embedder(model, depth=1, dim=4)(SHORT, "query")
    want = grid[:, 1, :4] / np.linalg.norm(grid[:, 1, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(small, want, atol=1e-5)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"depth": 4}, "depth 4 is not in 1 ... 3"),
        ({"dim": 17}, "dim 17 is not in 1 ... 16"),
        ({"pool": "best"}, "unknown pooling 'best'; known: mean"),
        ({"max_length": 41}, "max_length 41 is not in 1 ... 40"),
    ],
)
def test_sizes_that_the_model_does_not_have(model, options, message):
    with pytest.raises(ValueError, match=message):
        embedder(model, **options)


def test_depths_that_the_model_does_not_have(model):
    with pytest.raises(ValueError, match="depth 4 is not in 0 ... 3"):
        embedder(model, depths=(1, 4))


def test_texts_without_tokens(model):
    with pytest.raises(ValueError, match="text 1 .*no tokens"):
        embedder(model)(["dog", " "], "query")
    with pytest.raises(ValueError, match="no texts"):
        embedder(model)([], "query")
    # The special tokens around a space are those around nothing.
    empty, space = embedder(model, allow_empty=True)(["", " "], "query")
    assert np.isfinite(empty).all() and empty.any()
    np.testing.assert_allclose(empty, space, atol=1e-6)


def test_a_token_without_a_row_in_the_table_is_named(model):
    params, cfg, tokenizer = model
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_tokens(["covid"])
    added = (params, cfg, tokenizer)
    message = f"text 1 has the token 'covid' of id {cfg.vocab_size}, but"
    assert len(embedder(added).tokenize(["dog"], "query").rows[0].token_ids) == 1
    for chunk in (None, parse_chunking("naive(8)")):
        with pytest.raises(ValueError, match=message):
            embedder(added, chunk=chunk).tokenize(["dog", "a covid"], "document")


def test_vectors_that_are_not_finite_are_errors(model, monkeypatch):
    tokenized = embedder(model).tokenize(["dog", "quick"], "query")
    for value in (np.nan, np.inf, 1e30):
        vectors = np.ones((2, 16), np.float32)
        vectors[1, 3] = value
        embed = embedder(model)
        monkeypatch.setattr(embed, "_encode", lambda *_, vectors=vectors: vectors)
        with pytest.raises(ValueError, match="the vector of text 1 is not finite"):
            embed.encode(tokenized)


# The text is pooled in the first, what follows it in the second.
BOS, TEXT, CLOSE = Piece(special="bos"), Piece(is_text=True), Piece(special="close")
FIRST = (BOS, Piece("quick"), TEXT._replace(pooled=True), CLOSE)
SECOND = (BOS, TEXT, Piece("dog", pooled=True), CLOSE)
END = CLOSE._replace(pooled=True)
PREPENDED = (BOS, Piece("the"), Piece(special="<PST>"), TEXT, END)

SHORT = ["the", "quick brown", "dog runs away"]  # which nothing cuts


def prompt(*templates, pool=None, rewrite=str):
    return Prompt({"query": templates, "document": templates}, pool, rewrite)


def states(model, ids, layer=None, causal=False):
    """The state [S, D] of each token of a row, at a layer of `forward`."""
    params, cfg, _ = model
    cfg = dataclasses.replace(cfg, causal=causal)
    real = np.ones((1, len(ids)), bool)
    tokens = Tokens(np.int32([ids]), np.int32(real), real)
    found = compiled.forward(params, tokens, cfg, every_layer=True)
    return np.asarray(found.layers[cfg.depth if layer is None else layer, 0])


def parts(model, *texts):
    """The tokens of each, without special ones."""
    return [tokenize_texts(model[2], [text], 40)[0][1:-1] for text in texts]


def test_templates_say_what_is_pooled_and_are_averaged(model):
    cls, sep = (model[2].token_to_id(name) for name in ("[CLS]", "[SEP]"))
    raw = {"normalize": False}
    wanted = []
    for text in SHORT:
        quick, own, dog = parts(model, "quick", text, "dog")
        start = 1 + len(quick)
        x = states(model, [cls, *quick, *own, sep])[start : start + len(own)]
        y = states(model, [cls, *own, *dog, sep])[1 + len(own) : -1]
        wanted.append((x.mean(0), y.mean(0)))
    for templates, want in (
        ((FIRST,), [x for x, _ in wanted]),
        ((FIRST, SECOND), np.mean(wanted, axis=1)),
    ):
        embed = embedder(model, prompt=prompt(*templates), **raw)
        np.testing.assert_allclose(embed(SHORT, "query"), want, atol=1e-5)
    unit = embedder(model, prompt=prompt(FIRST, SECOND))(SHORT, "query")
    want = np.mean(wanted, axis=1)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, want, atol=1e-5)


def test_a_prompt_rewrites_texts_and_chooses_the_pooling(model):
    plain = (BOS._replace(pooled=True), TEXT._replace(pooled=True), END)
    embed = embedder(model, prompt=prompt(plain, pool="cls", rewrite=str.upper))
    want = embedder(model, pool="cls")(SHORT, "query")
    np.testing.assert_allclose(embed(SHORT, "query"), want, atol=1e-5)


def test_layers_are_averaged_and_no_more_blocks_run(model):
    raw = {"normalize": False}
    grid = embedder(model, depths=(0, 1, 2, 3), **raw)(SHORT, "query")
    for layers, want in (
        ((-2,), grid[:, 2]),
        ((1, 3), grid[:, [1, 3]].mean(1)),
        ((0,), grid[:, 0]),
    ):  # BERT has no final norm: raw states are those of the grid
        x = embedder(model, layers=layers, **raw)(SHORT, "query")
        np.testing.assert_allclose(x, want, atol=1e-5)
    params, cfg, tokenizer = model
    broken = jax.tree.map(lambda x: x.at[1:].set(np.nan), params["layers"])
    broken = {**params, "layers": broken}, cfg, tokenizer
    np.testing.assert_allclose(
        embedder(broken, layers=(1, 0), **raw)(SHORT, "query"),
        grid[:, [1, 0]].mean(1),
        atol=1e-5,
    )


def test_tokens_see_both_sides_or_one(model):
    text, end = TEXTS[6], tokenize_texts(model[2], TEXTS[6:7], 32)[0]
    for both in (True, False):
        x = embedder(model, bidirectional=both, normalize=False, pool="cls")
        want = states(model, end, causal=not both)[0]
        np.testing.assert_allclose(x([text], "query")[0], want, atol=1e-5)


def test_prepended_tokens(model):
    """The closing token reads <PST>, which is the new row of the token table."""
    one = prompt(PREPENDED, pool="last")

    def embed(window):
        found = embedder(model, prompt=one, prepend=window, bidirectional=False)
        return found(SHORT, "query")

    off = embed((1, 1))
    np.testing.assert_array_equal(off, embed((3, 3)))
    np.testing.assert_allclose(off, embed(None), atol=1e-6)
    assert np.abs(embed((1, 3)) - off).max() > 1e-4
    assert model[2].token_to_id("<PST>") is None


@pytest.mark.parametrize(
    "options,message",
    [
        ({"layers": (4,)}, "layer 4 is not in -4 ... 3 .* depth is 3"),
        ({"layers": (-1,), "prepend": (1, 2)}, "needs a prompt with the token <PST>"),
        (
            {"prompt": prompt(FIRST), "prepend": (1, 2)},
            "needs a prompt with the token <PST>",
        ),
        (
            {"prompt": prompt(PREPENDED), "prepend": (1, 4)},
            "blocks 1:4 needs 0 <= start <= exit <= 3",
        ),
        (
            {"prompt": prompt(PREPENDED, FIRST), "prepend": (1, 2)},
            "only some templates .* <PST>",
        ),
    ],
)
def test_what_cannot_be_embedded(model, options, message):
    with pytest.raises(ValueError, match=message):
        embedder(model, **options)


def test_prompts_and_templates_of_a_model_exclude_each_other(model):
    settings = {"prompts": {"query": "a"}, "normalize": True, "prompt": prompt(FIRST)}
    with pytest.raises(ValueError, match="prompts and templates"):
        Embedder(EmbeddingModel(*model, "mean", 32, **settings))


def test_a_transform_comes_before_the_normalization(model):
    raw = embedder(model, normalize=False, dim=4)(TEXTS, "query")
    shift = LinearMap(-np.eye(4)[0], np.eye(4)[:, :3])
    transform = VectorTransform("shift", (shift,))
    x = embedder(model, dim=4, transform=transform)(TEXTS, "query")
    want = raw[:, :3] + [1, 0, 0]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, want, atol=1e-5)


@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_hold_every_text_once_in_few_shapes(multiple):
    lengths = np.random.default_rng(0).integers(2, 200, 3_000)
    sizes = BatchSizes(1_024, 200, multiple)
    numbers, shapes = [], set()
    for chosen, rows, length in group_by_length(lengths, sizes):
        assert len(chosen) <= rows
        assert rows % multiple == 0
        assert lengths[chosen].max() <= length <= 200
        numbers.extend(chosen)
        shapes.add((rows, length))
    assert sorted(numbers) == list(range(3_000))
    assert len(shapes) < 20


def test_padded_lengths_waste_little():
    assert [padded_length(n) for n in (1, 8, 9, 65, 129)] == [8, 8, 16, 80, 160]
    assert all(n <= padded_length(n) < 1.25 * n + 8 for n in range(1, 5_000))
