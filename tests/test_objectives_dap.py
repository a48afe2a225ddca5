"""Ranking of translations, and the prediction of their tokens by a decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_objectives_contrastive import CFG, over_sizes

from research import sharding
from research.models import decoders, embedding, encoder, heads
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.segment_positions import segment_positions
from research.objectives.dap import dap, join_pairs, predict_translations
from research.types import Batch, Labels, Tokens

SHAPE = dataclasses.replace(CFG, max_len=32)


@pytest.fixture(scope="module")
def batch():
    """Eight pairs in rows of sixteen tokens, the texts of a row of 9 and 6 tokens."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 80, (8, 16)).astype("i4")
    segments = np.tile([1] * 9 + [2] * 6 + [0], (8, 1)).astype("i4")
    query = np.arange(0, 16, 2, dtype="i4")
    return Batch(Tokens(ids, segments, segments > 0), query + 1, query, Labels())


@pytest.fixture(scope="module")
def objective():
    return dap(SHAPE, BASIC_POOLINGS["cls"], over_sizes("full_size"), depth=1)


def test_tokens_are_predicted_as_in_rows_of_one_pair(key, batch, objective):
    """The formula, pair by pair: the query has 6 tokens, the document 9."""
    params, _ = objective.init(key)
    own = params["translation"]
    x, _ = encoder.apply(params["encoder"], batch.tokens, SHAPE)
    part = jax.jit(
        lambda params, x: predict_translations(
            params, x, batch, SHAPE, 12, (None, None)
        )
    )(params, x)
    np.testing.assert_array_equal(part.valid.sum(1), 8)

    @jax.jit
    def predict(states):
        # Five states, and eight masks with the positions 1 to 8 of their text
        row = jnp.ones((1, 9), jnp.int32)
        mask = jnp.broadcast_to(own["mask"], (1, 9, SHAPE.width))
        places = segment_positions(row)
        masks = embedding.embed_tokens(own, row, places, SHAPE, states=mask)
        z = jnp.concatenate([states, masks[0, 1:]])[None]
        row = jnp.ones((1, 13), jnp.int32)
        places = segment_positions(row)
        z = embedding.embed_tokens(own, row, places, SHAPE, states=z)
        y = decoders.decode(params["encoder"], own["decoder"], z, places, SHAPE)
        return heads.apply_mlm_head(own["head"], y[0, 5:], SHAPE)

    for i in range(8):
        np.testing.assert_array_equal(
            part.labels[i, :8], batch.tokens.token_ids[i, 1:9]
        )
        expected = predict(x[i, 10:15])  # without the first token
        np.testing.assert_allclose(part.states[i, :8], expected, rtol=1e-4, atol=1e-5)


def test_what_is_predicted_is_no_input_and_first_tokens_get_no_gradient(batch):
    """The decoder sees neither the document nor the states of first tokens."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 4)), jnp.float32)
    tokens = batch.tokens
    arrays = tokens.segment_ids, batch.query_index, batch.document_index

    def sum_states(x):
        pairs = join_pairs(15, x, tokens.token_ids, *arrays)
        is_source = np.arange(30)[None] < pairs.num_source[:, None]
        return jnp.sum(jnp.where(is_source[..., None], pairs.states, 0.0))

    gradient = jax.grad(sum_states)(x)
    reached = np.any(np.asarray(gradient), axis=(0, 2))
    assert np.flatnonzero(reached).tolist() == [10, 11, 12, 13, 14]


def test_one_device_equals_eight(key, batch, objective):
    params, _ = objective.init(key)
    # Without dropout, whose keys differ by device
    cfg = dataclasses.replace(SHAPE, dropout=0.0, attention_dropout=0.0)
    plain = dap(cfg, BASIC_POOLINGS["cls"], over_sizes("full_size"), depth=1)

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            output = plain.loss(params, {}, batch, key)
            return output.value, output.metrics

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, metrics), grads = gradient(params, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(
        value, metrics["ranking"] + 0.1 * metrics["translation"], rtol=1e-6
    )
    assert metrics["translation"] > 3
    mesh = sharding.make_mesh({"data": -1})
    with jax.set_mesh(mesh):
        split = gradient(params, sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(split[0][0], value, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
        jax.device_get(split[1]),
        jax.device_get(grads),
    )


def test_long_texts_are_cut(batch):
    x = jnp.zeros((8, 16, 4))
    tokens = batch.tokens
    arrays = tokens.segment_ids, batch.query_index, batch.document_index
    pairs = join_pairs(3, x, tokens.token_ids, *arrays)
    assert pairs.states.shape == (8, 6, 4)
    assert pairs.valid.all() and (pairs.segment_ids == 1).all()
    np.testing.assert_array_equal(pairs.labels, tokens.token_ids[:, 1:4])
    np.testing.assert_array_equal(pairs.offsets[0], [1, 2, 3, 1, 2, 3])


def test_mistakes_are_named():
    for options, message in (
        ({"depth": 9}, "objective.depth is 9; allowed: 1 ... 2"),
        ({"length": 1}, "objective.length is 1; it should be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            dap(SHAPE, BASIC_POOLINGS["cls"], over_sizes("full_size"), **options)
