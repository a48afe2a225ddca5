import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from research.data.text import train_tokenizer
from research.eval.embed import make_embedder, make_grid_embedder
from research.eval.rows import batches, padded_length
from research.models import encoder
from research.models.config import EncoderConfig

SENTENCE = "the quick brown fox jumps over a lazy dog and runs away"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 7] * (1 + i % 3)) for i in range(21)]
CONFIG = EncoderConfig(vocab=64, width=16, depth=3, heads=2, mlp=32, max_len=40)


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer(WORDS, 64)
    cfg = CONFIG
    return encoder.init(jax.random.key(1), cfg), cfg, tokenizer


def embedder(model, make=make_embedder, **options):
    settings = {"pool": "mean", "max_length": 32, **options}
    return make(*model, **settings)


def test_order_batch_size_and_neighbours_change_nothing(model):
    small, large = (embedder(model, batch_tokens=n) for n in (16, 4096))
    x = small(TEXTS, "query")
    assert x.shape == (21, 16)
    assert x.dtype == np.float32
    np.testing.assert_allclose(large(TEXTS, "query"), x, atol=1e-5)
    np.testing.assert_allclose(small(TEXTS[::-1], "query")[::-1], x, atol=1e-5)
    np.testing.assert_allclose(small(TEXTS[4:5], "query"), x[4:5], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)


def test_spread_over_devices(model):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = embedder(model)(TEXTS, "query")
    spread = embedder(model, mesh=mesh, batch_tokens=32)(TEXTS, "query")
    np.testing.assert_allclose(spread, x, atol=1e-5)


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
    grid = embedder(model, make_grid_embedder, depths=(0, 1, 3))(TEXTS, "query")
    assert grid.shape == (21, 3, 16)
    raw = embedder(model, normalize=False)(TEXTS, "query")
    np.testing.assert_allclose(grid[:, 2], raw, atol=1e-5)
    small = embedder(model, depth=1, dim=4)(TEXTS, "query")
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
        embedder(model, make_grid_embedder, depths=(1, 4))


def test_texts_without_tokens(model):
    with pytest.raises(ValueError, match="text 1 .*no tokens"):
        embedder(model)(["dog", " "], "query")
    with pytest.raises(ValueError, match="no texts"):
        embedder(model)([], "query")


@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_hold_every_text_once_in_few_shapes(multiple):
    lengths = np.random.default_rng(0).integers(2, 200, 3_000)
    seen, shapes = [], set()
    for chosen, rows, length in batches(lengths, 1_024, 200, multiple):
        assert len(chosen) <= rows
        assert rows % multiple == 0
        assert lengths[chosen].max() <= length <= 200
        seen.extend(chosen)
        shapes.add((rows, length))
    assert sorted(seen) == list(range(3_000))
    assert len(shapes) < 20


def test_padded_lengths_waste_little():
    assert [padded_length(n) for n in (1, 8, 9, 65, 129)] == [8, 8, 16, 80, 160]
    assert all(n <= padded_length(n) < 1.25 * n + 8 for n in range(1, 5_000))
