"""Low-rank adapters beside the kernels."""

import dataclasses

import chex
import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import encoder
from research.models import lora as adapters
from research.models.config import bert, modern
from research.models.pooling.basic import mean_pool
from research.types import Tokens

SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp": 48,
    "max_len": 32,
}
BERT = bert(**SHAPE, dropout=0.0)
MODERN = modern(**SHAPE)
RANK, ALPHA = 3, 6.0


def texts(rows=4, length=8):
    ids = np.random.default_rng(0).integers(5, 60, (rows, length), dtype=np.int32)
    ones = np.ones_like(ids)
    return Tokens(*map(jnp.asarray, (ids, ones, ones > 0)))


def encoded(params, tokens, cfg, key=None, slots=1):
    return encoder.encode(params, tokens, cfg, mean_pool, key=key, max_segments=slots)


@jax.jit
def shaken(params):
    """The same with adapters that do something."""

    def random(path, leaf):
        name = jax.tree_util.keystr(path)
        if "'lora'" not in name or not name.endswith("['b']"):
            return leaf
        key = jax.random.fold_in(jax.random.key(5), len(name) + leaf.size)
        return 0.1 * jax.random.normal(key, leaf.shape)

    return jax.tree_util.tree_map_with_path(random, params)


def with_lora(cfg, **arguments):
    plain = compiled.init(jax.random.key(0), cfg)
    arguments = {"rank": RANK, "alpha": ALPHA} | arguments
    return plain, adapters.init_lora(jax.random.key(1), plain, **arguments)


@pytest.fixture(scope="module")
def pair():
    """A model of two adapters that do something, and texts."""
    return shaken(with_lora(BERT, count=2)[1]), texts()


@pytest.fixture
def without_optimizations():
    """XLA's fusions round differently in a program with more operations."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    jax.clear_caches()
    yield
    jax.config.update(name, before)
    jax.clear_caches()


@pytest.mark.parametrize("cfg", [BERT, MODERN], ids=["bert", "modern"])
def test_new_adapters_change_no_bit(without_optimizations, cfg):
    plain, lora = with_lora(cfg)
    tokens = texts()
    expected = encoded(plain, tokens, cfg)
    np.testing.assert_array_equal(expected, encoded(lora, tokens, cfg))
    assert (np.abs(expected - encoded(shaken(lora), tokens, cfg)) > 1e-3).any()


def test_a_is_kaiming_uniform_and_b_zero():
    _, lora = with_lora(dataclasses.replace(BERT, mlp=512), rank=16)
    for name, fan in (("query", 32), ("out", 32), ("down", 512)):
        leaf = lora["layers"][name]["lora"]
        a = np.asarray(leaf["a"])
        assert np.abs(a).max() <= fan**-0.5
        # The deviation of a uniform variable on [-1, 1] is 3^-1/2.
        assert a.std() == pytest.approx((3 * fan) ** -0.5, rel=0.1)
        assert not np.any(leaf["b"]) and (np.asarray(leaf["scale"]) == ALPHA / 16).all()


def test_parameters_are_those_of_the_formula():
    _, lora = with_lora(BERT, targets="query|value")
    part, rest = adapters.partition(lora, adapters.LORA_LEAVES)
    assert adapters.num_params(part) == 2 * 2 * RANK * (32 + 32)  # blocks, layers
    assert set(part["layers"]) == {"query", "value"}
    chex.assert_trees_all_equal(adapters.combine(part, rest), lora)
    assert not adapters.partition(rest, adapters.LORA_LEAVES)[0]


@pytest.mark.parametrize("cfg", [BERT, MODERN], ids=["bert", "modern"])
def test_merged_kernels_compute_the_same(cfg):
    lora = shaken(with_lora(cfg)[1])
    plain = adapters.merge_lora(lora)
    chex.assert_trees_all_equal_structs(plain, adapters.remove_adapters(lora))
    tokens = texts()
    expected = encoded(lora, tokens, cfg)
    np.testing.assert_allclose(encoded(plain, tokens, cfg), expected, atol=1e-6)


def test_a_layer_adds_scale_times_x_a_b():
    lora = shaken(with_lora(BERT)[1])
    for name, axes in (("query", 1), ("out", 2), ("down", 1)):
        layer = lora["layers"][name]
        a, b = (np.asarray(layer["lora"][side][1], np.float64) for side in "ab")
        delta = np.tensordot(a, b, 1) * ALPHA / RANK
        assert delta.shape == layer["kernel"].shape[1:] and a.ndim == axes + 1
        got = (
            adapters.merge_lora(lora)["layers"][name]["kernel"][1] - layer["kernel"][1]
        )
        np.testing.assert_allclose(got, delta, atol=1e-6)


def test_rows_of_different_adapters_equal_separate_calls(pair):
    lora, tokens = pair
    numbers = np.array([0, 1, -1, 1], np.int32)
    adapter = jnp.broadcast_to(jnp.asarray(numbers)[:, None], tokens.token_ids.shape)
    got = encoded(lora, tokens._replace(adapter_ids=adapter), BERT)
    alone = [
        encoded(params, tokens, BERT)
        for params in (
            adapters.select_adapter(lora, 0),
            adapters.select_adapter(lora, 1),
            adapters.remove_adapters(lora),
        )
    ]
    expected = np.stack([np.asarray(alone[n])[row] for row, n in enumerate(numbers)])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    distances = [np.abs(alone[i] - alone[j]).min(1).max() for i, j in ((0, 1), (0, 2))]
    assert min(distances) > 1e-5
    # Without a number for each token all go through the first.
    np.testing.assert_array_equal(encoded(lora, tokens, BERT), alone[0])


def test_packed_texts_of_different_adapters_equal_separate_calls(pair):
    lora, tokens = pair
    numbers = jnp.asarray([0, 1, -1, 1], jnp.int32)
    adapter = jnp.broadcast_to(numbers[:, None], tokens.token_ids.shape)
    expected = encoded(lora, tokens._replace(adapter_ids=adapter), BERT)
    length = tokens.token_ids.shape[1]
    segment = jnp.asarray(np.repeat(np.arange(1, 5), length)[None], jnp.int32)
    flat = (tokens.token_ids, segment, tokens.pooling_mask, adapter)
    packed = Tokens(*(x.reshape(1, -1) for x in flat))
    got = encoded(lora, packed, BERT, slots=4)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_an_adapter_of_a_pair_merges_to_itself(pair):
    lora, tokens = pair
    expected = encoded(adapters.select_adapter(lora, 1), tokens, BERT)
    got = encoded(adapters.merge_lora(lora, 1), tokens, BERT)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_dropout_is_of_training_and_of_the_adapters_only():
    lora = with_lora(BERT, dropout=0.5)[1]
    tokens, key = texts(), jax.random.key(2)
    np.testing.assert_array_equal(  # b is zero still
        encoded(lora, tokens, BERT, key), encoded(lora, tokens, BERT)
    )
    lora = shaken(lora)
    calm = [encoded(lora, tokens, BERT, k) for k in (None, key, jax.random.key(3))]
    assert (calm[0] != calm[1]).any() and (calm[1] != calm[2]).any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"targets": "q_proj"}, "'q_proj' matches none of query, key, value, out, up"),
        ({"rank": 0}, "a rank .* of at least 1 .* not 0, 1 and 0"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_adapters_that_cannot_be_say_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        with_lora(BERT, **arguments)
    with pytest.raises(ValueError, match="has 1 adapters already"):
        adapters.init_lora(jax.random.key(0), with_lora(BERT)[1], rank=1, alpha=1.0)
