"""SeqPE: positions as digits, the bias of their vectors and its two regularisers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.models import encoder
from research.models.config import modern
from research.models.positions import seqpe
from research.types import Tokens

FORWARD = jax.jit(encoder.forward, static_argnums=2)
INIT = jax.jit(encoder.init, static_argnums=1)
SHAPE = {"vocab_size": 60, "width": 32, "depth": 2, "num_heads": 4, "mlp": 48}
CFG = replace(
    modern(**SHAPE, max_len=64, position="none", position_bias="seqpe"), num_kv_heads=2
)


@pytest.fixture(scope="module")
def params():
    """Tables and kernels ten times larger than at the start, so that digits count."""
    start = jax.jit(seqpe.init_seqpe, static_argnums=1)(jax.random.key(1), CFG)
    return jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, start)


def test_channels_are_of_each_position_alone(params):
    position = jnp.array([[0, 1, 2, 3], [2, 99_999, 1, 0]], jnp.int32)
    query, key = seqpe.position_channels(params, CFG, position)
    for x, heads in ((query, 4), (key, 2)):
        assert x.shape == (2, 4, heads, seqpe.CHANNELS) and x.dtype == jnp.float32
        np.testing.assert_allclose(x[0, 2], x[1, 0], atol=1e-5)
        np.testing.assert_allclose(x[0, 0], x[1, 3], atol=1e-5)
        assert np.abs(x[0, 0] - x[0, 1]).max() > 1e-2


def test_every_digit_and_its_place_counts(params):
    position = jnp.array([0, 1, 10, 100, 1_000, 10_000, 12, 21], jnp.int32)
    vectors = np.asarray(seqpe.position_vectors(params, position))
    apart = np.abs(vectors[:, None] - vectors[None]).max(-1)
    assert apart[~np.eye(len(position), dtype=bool)].min() > 1e-2


def test_attention_among_digits_is_causal(params):
    p = jax.tree.map(lambda x: x[0], params["blocks"])
    x = jax.random.normal(jax.random.key(2), (seqpe.DIGITS, seqpe.WIDTH))
    changed = x.at[3].add(1.0)
    attend = jax.jit(seqpe.attend_digits)
    gap = np.abs(attend(p, x) - attend(p, changed)).max(-1)
    np.testing.assert_array_equal(gap[:3], 0)
    assert (gap[3:] > 0).all()


def test_more_positions_than_digits_count_are_refused(key):
    cfg = modern(**SHAPE, max_len=100_001, position="none", position_bias="seqpe")
    with pytest.raises(ValueError, match="encoder.max_len is 100001"):
        seqpe.init_seqpe(key, cfg)


def test_nearest_is_the_cross_entropy_of_the_nearest_position():
    position = jnp.array([10, 13, 30], jnp.int32)
    scores = jnp.arange(18.0).reshape(2, 3, 3) / 7
    expected = []
    for head in np.asarray(scores):
        for i, right in enumerate((1, 0, 1)):
            others = [j for j in range(3) if j != i]
            expected += [np.log(np.exp(head[i, others]).sum()) - head[i, right]]
    got = seqpe.nearest_position_loss(scores, position)
    np.testing.assert_allclose(got, np.mean(expected), rtol=1e-5)


def test_transfer_is_a_divergence_that_trains_only_the_shifted(key):
    inside, outside = jax.random.normal(key, (2, 3, 5, 5))
    assert seqpe.transfer_loss(inside, outside) > 0.1
    # A softmax does not see what is added to a row.
    np.testing.assert_allclose(seqpe.transfer_loss(inside, inside + 3), 0, atol=1e-6)
    slopes = jax.grad(seqpe.transfer_loss, argnums=(0, 1))(inside, outside)
    np.testing.assert_array_equal(slopes[0], 0)
    assert np.abs(slopes[1]).max() > 0


def test_the_penalty_falls_when_it_is_trained(key):
    params = seqpe.init_seqpe(key, CFG)

    @jax.jit
    def step(params):
        value, slope = jax.value_and_grad(lambda p: seqpe.penalty(key, p, CFG))(params)
        size = 0.3 / optax.tree.norm(slope)
        return value, jax.tree.map(lambda x, g: x - size * g, params, slope), slope

    first, params, _ = step(params)
    for _ in range(40):
        last, params, slope = step(params)
    assert last < 0.9 * first
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(slope))


def test_the_model_reads_positions_in_its_text_and_trains_their_vectors(key, params):
    text = np.array([7, 3, 50, 21, 8, 9], np.int32)
    model = {**INIT(key, CFG), "position_bias": params}

    def states(ids, segment, relative):
        ids, segment = (jnp.asarray(x, jnp.int32)[None] for x in (ids, segment))
        tokens = Tokens(ids, segment, segment > 0)
        return FORWARD({**model, "position_bias": relative}, tokens, CFG).hidden_states[
            0
        ]

    alone = states(text, np.ones(6), params)
    after = states(np.append([4, 4, 4], text), np.repeat([1, 2], [3, 6]), params)
    np.testing.assert_allclose(after[3:], alone, atol=1e-5)
    swapped = states(text[::-1], np.ones(6), params)[::-1]
    assert np.abs(swapped - alone).max() > 1e-4
    slope = jax.jit(jax.grad(lambda p: states(text, np.ones(6), p).std()))(params)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(slope))
