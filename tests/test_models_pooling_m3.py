"""BGE-M3's pooling: weights, vectors and rows of tokens, of packed texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import config
from research.models.attention.masks import pooling_masks
from research.models.pooling.registry import parse_pooling
from research.transforms.token_rows import split_rows

CFG = config.bert(vocab_size=600, width=4, depth=1, num_heads=1, mlp=4)
IDS = np.array([[0, 5, 7, 5, 2, 0, 513, 2, 1]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 0]], np.int32)
MASK = pooling_masks(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS > 0), 2)
WEIGHTS = [0.9, 0.2, -0.1, 0.6, 0.3, 0.9, 0.4, 0.9, 0.9]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "pooling": {
            # The weight of a token is the first of its states
            "sparse": {"kernel": np.eye(4, 1, dtype="f4"), "bias": np.zeros(1, "f4")},
            "tokens": {
                "kernel": rng.normal(size=(4, 4)).astype("f4"),
                "bias": rng.normal(size=4).astype("f4"),
            },
        }
    }


@pytest.fixture(scope="module")
def states():
    states = np.random.default_rng(1).normal(size=(1, 9, 4)).astype("f4")
    states[0, :, 0] = WEIGHTS
    return states


def pool(output, params, states):
    pooling = parse_pooling(f"m3(output='{output}')")
    return np.asarray(
        pooling.pool(params, CFG, jnp.asarray(states), MASK, token_ids=IDS)
    )


def test_a_token_has_the_largest_weight_of_its_occurrences(params, states):
    weights = pool("sparse", params, states)
    want = np.zeros((1, 2, 600), "f4")
    want[0, 0, 5], want[0, 1, 513] = 0.6, 0.4
    np.testing.assert_allclose(weights, want)


def test_rows_hold_the_three_embeddings(params, states):
    rows = pool("all", params, states)
    assert parse_pooling("m3").width(CFG) == rows.shape[2] == 8
    vectors, *terms = split_rows(rows[0], "m3")
    ids, weights = (x[:, 0] for x in terms)
    np.testing.assert_array_equal(ids, [0, 5, 0, 5, 0, 0, 513, 0, 0])
    np.testing.assert_allclose(weights, [0, 0.2, 0, 0.6, 0, 0, 0.4, 0, 0])
    # The first row of a text is its dense vector
    dense = pool("dense", params, states)[0]
    np.testing.assert_array_equal(vectors[[0, 5]], dense)
    np.testing.assert_array_equal(dense, states[0, [0, 5]])
    tokens = pool("multi_vector", params, states)[0]
    own = [1, 2, 3, 4, 6, 7]
    np.testing.assert_array_equal(vectors[own], tokens[own])
    assert not tokens[[0, 5, 8]].any() and not rows[0, 8].any()
    kernel, bias = params["pooling"]["tokens"].values()
    np.testing.assert_allclose(tokens[own], states[0, own] @ kernel + bias, rtol=1e-5)


def test_new_parameters_have_the_shapes_of_the_encoder():
    shapes = jax.tree.map(
        jnp.shape, parse_pooling("m3").init(jax.random.key(0), CFG, {})
    )
    assert shapes["sparse"] == {"kernel": (4, 1), "bias": (1,)}
    assert shapes["tokens"] == {"kernel": (4, 4), "bias": (4,)}
    with pytest.raises(ValueError, match="pool.output"):
        parse_pooling("m3(output='lexical')")
