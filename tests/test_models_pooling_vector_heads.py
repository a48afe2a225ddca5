"""Heads over vectors: latents and codes by hand, against NumPy, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.pooling.registry import parse_pooling, pooled_kind
from research.models.pooling.vector_heads import (
    bebr,
    compute_latents,
    csr,
    encode_recurrent_bits,
    select_latents,
    take_signs,
)
from research.transforms.quantization import fit_int2, fit_int4

RANDOM = np.random.default_rng(0)
DICTIONARY = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]], np.float32)


def test_latents_by_hand():
    weights = {"kernel": DICTIONARY.T, "bias": np.zeros(4), "center": np.zeros(2)}
    a = compute_latents(weights, jnp.array([[0.8, 0.6]]))
    np.testing.assert_allclose(a, [[0.8, 0.6, -0.8, 0.96]], atol=1e-6)
    one, two, all_of_them = (select_latents(a, k) for k in (1, 2, 4))
    np.testing.assert_allclose(one, [[0, 0, 0, 0.96]], atol=1e-6)
    np.testing.assert_allclose(two, [[0.8, 0, 0, 0.96]], atol=1e-6)
    np.testing.assert_allclose(all_of_them, [[0.8, 0.6, 0, 0.96]], atol=1e-6)
    np.testing.assert_allclose(one @ DICTIONARY, [[0.576, 0.768]], atol=1e-6)


def identity(rounds):
    layer = {"rebuild": np.eye(2), "residual": np.eye(2)}
    return {"first": np.eye(2), "rounds": {str(t): layer for t in range(rounds)}}


@pytest.mark.parametrize(
    "rounds, codes",
    [
        (0, [(1, 1), (1, -1)]),
        (1, [(1.5, 0.5), (0.5, -1.5)]),
        (2, [(1.25, 0.75), (0.75, -1.25)]),
    ],
)
def test_recurrent_bits_by_hand(rounds, codes):
    f = jnp.array([(0.8, 0.6), (0.6, -0.8)])
    np.testing.assert_array_equal(encode_recurrent_bits(identity(rounds), f), codes)


def test_recurrent_bits_are_those_of_numpy_and_nested():
    f = RANDOM.normal(size=(50, 6))
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    weights = {
        "first": RANDOM.normal(size=(6, 10)),
        "rounds": {
            str(t): {
                "rebuild": RANDOM.normal(size=(10, 6)),
                "residual": RANDOM.normal(size=(6, 10)),
            }
            for t in range(2)
        },
    }
    b, codes = np.where(f @ weights["first"] >= 0, 1.0, -1.0), []
    for t in range(2):
        layer = weights["rounds"][str(t)]
        back = b @ layer["rebuild"]
        rest = f - back / np.linalg.norm(back, axis=1, keepdims=True)
        b = b + np.where(rest @ layer["residual"] >= 0, 1, -1) / 2 ** (t + 1)
        codes.append(b)
    np.testing.assert_array_equal(encode_recurrent_bits(weights, f), codes[1])
    # The first planes are the code of fewer rounds
    fewer = weights | {"rounds": {"0": weights["rounds"]["0"]}}
    np.testing.assert_array_equal(encode_recurrent_bits(fewer, f), codes[0])
    assert set(np.unique(codes[0])) == {-1.5, -0.5, 0.5, 1.5}


@pytest.mark.parametrize("rounds, fit, size", [(1, fit_int2, 2), (3, fit_int4, 4)])
def test_codes_are_stored_without_loss(rounds, fit, size):
    f = RANDOM.normal(size=(20, 2)).astype(np.float32)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    codes = np.tile(np.asarray(encode_recurrent_bits(identity(rounds), f)), 3)
    quantizer = fit(codes[:0], limit=2.0)
    stored = quantizer.encode(codes)
    assert stored.shape == (20, -(-6 * size // 8))
    np.testing.assert_array_equal(quantizer.decode(stored), codes)


def test_a_sign_has_the_gradient_of_its_input_where_that_is_small():
    x = jnp.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(take_signs(x), [-1, -1, 1, 1, 1])
    slope = jax.grad(lambda x: take_signs(x).sum())(x)
    np.testing.assert_array_equal(slope, [0, 1, 1, 1, 0])


def test_poolings_and_their_options():
    assert pooled_kind("csr(latents=8, k=2)") == "sparse"
    assert pooled_kind("bebr()") == "dense"
    assert parse_pooling("bebr(dim=8)").width(None) == 8
    with pytest.raises(ValueError, match="pool.k is 9; allowed: 1 ... 8"):
        csr(latents=8, k=9)
    with pytest.raises(ValueError, match="pool.base is 'max'; allowed: mean, cls"):
        csr(base="max")
    with pytest.raises(ValueError, match="pool.dim is 0 and pool.rounds 1"):
        bebr(dim=0)
