"""ELECTRA: what counts as replaced, and who learns from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, TEXT, VOCAB, lively, random_rows

from research.objectives import electra as module
from research.objectives.electra import (
    detection_loss,
    electra,
    replace_tokens,
    sample_tokens,
)

ROWS = random_rows(4, 2, 32)


def test_drawn_tokens_stand_where_real_ones_were_hidden():
    ids = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    at = jnp.asarray([[1, 4, 0], [5, 0, 2]], jnp.int32)
    real = jnp.asarray([[True, True, False], [True, False, False]])
    got = replace_tokens(ids, at, real, jnp.full((2, 3), 40, jnp.int32))
    assert got.tolist() == [[0, 40, 2, 3, 40, 5], [6, 7, 8, 9, 10, 40]]


def test_detection_is_binary_cross_entropy_over_real_tokens(key):
    scores = 3 * jax.random.normal(key, (2, 7))
    fake = jnp.arange(14).reshape(2, 7) % 3 == 0
    real = jnp.arange(7)[None] < jnp.asarray([[7], [4]])
    loss, metrics = detection_loss(scores, fake, real)
    z, f, r = (np.asarray(x)[np.asarray(real)] for x in (scores, fake, real))
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    expected = -np.log(np.where(f, p, 1 - p)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["replaced"], f.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["found"], (z > 0)[f].mean(), rtol=1e-6)


@pytest.mark.parametrize("logits", [1 << 20, 3 * VOCAB])
def test_draws_follow_the_output_layer(key, logits):
    table = jnp.zeros((VOCAB, 4))
    bias = jnp.full(VOCAB, -50.0).at[7].set(0.0).at[9].set(np.log(3.0))
    got = np.asarray(
        sample_tokens(key, jnp.zeros((400, 4)), table, bias, logits=logits)
    )
    assert set(got) == {7, 9}
    assert (got == 9).mean() == pytest.approx(0.75, abs=0.08)


def test_the_right_token_is_not_replaced(key, monkeypatch):
    objective = electra(CFG, TEXT)
    params = lively(objective.init)[0]
    ids = jnp.where(jnp.asarray(ROWS.word_ids) > 0, 7, ROWS.tokens.token_ids)
    rows = ROWS._replace(tokens=ROWS.tokens._replace(token_ids=ids))

    def always(token):
        def draw(key, x, table, bias):
            return jnp.full(len(x), token, jnp.int32)

        monkeypatch.setattr(module, "sample_tokens", draw)
        return jax.jit(lambda p: objective.loss(p, {}, rows, key)[1])(params)

    wrong, right = always(8), always(7)
    assert right["replaced"] == 0 and wrong["masked"] > 0.05
    np.testing.assert_allclose(wrong["replaced"], wrong["masked"], rtol=1e-6)


def test_the_generator_does_not_learn_from_the_encoder(key):
    parts = [electra(CFG, TEXT, weight=weight) for weight in (50.0, 0.0)]
    params = lively(parts[0].init)[0]

    def difference(params):
        whole, without = (part.loss(params, {}, ROWS, key)[0] for part in parts)
        return whole - without

    gradient = jax.jit(jax.grad(difference))(params)
    for name in ("generator", "head"):
        for leaf in jax.tree.leaves(gradient[name]):
            np.testing.assert_allclose(leaf, 0, atol=1e-4)
    assert float(jnp.abs(gradient["detector"]["output"]["kernel"]).max()) > 1e-2


def test_a_generator_is_a_part_of_the_encoder():
    for size in (0.0, 1.5, 0.01):
        with pytest.raises(ValueError, match="it should be a part of the encoder's"):
            electra(CFG, TEXT, size=size)
