"""A trained product quantizer: its values are the transform's, its gradient is soft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.pooling.codebook import init_codebook, quantize_vectors
from research.transforms.pipeline import (
    VectorTransform,
    fit_transform,
    make_pq_transform,
    save_transform,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 8)).astype(np.float32)
CENTROIDS = RANDOM.normal(size=(4, 256, 2)).astype(np.float32)
ROTATION = np.linalg.qr(RANDOM.normal(size=(8, 8)))[0].astype(np.float32)
PLAIN, TURNED = {"centroids": CENTROIDS}, {"centroids": CENTROIDS, "rotation": ROTATION}


@pytest.mark.parametrize("codebook", [PLAIN, TURNED])
def test_values_are_those_of_the_transform(codebook):
    transform = make_pq_transform(codebook)
    quantizer = transform.quantizer
    codes = quantizer.encode(X)
    weights = jax.tree.map(jnp.asarray, codebook)
    decoded = np.asarray(jax.jit(quantize_vectors)(weights, X))
    np.testing.assert_array_equal(quantizer.encode(decoded), codes)
    if "rotation" in codebook:
        assert transform.text == "pq(4)"
        np.testing.assert_allclose(decoded, quantizer.decode(codes), atol=2e-6)
    else:  # to the last bit
        assert transform.text == "pq(4, rotate=False)"
        np.testing.assert_array_equal(decoded, quantizer.decode(codes))


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_the_gradient_is_that_of_soft_codes_at_the_hard_ones(temperature):
    direction = jnp.asarray(RANDOM.normal(size=X.shape), jnp.float32)

    def soft_codes(weights, x):
        """One-hot codes, with the gradient of the softmax, times the centroids."""
        turned = jnp.matmul(x, ROTATION.T, precision="highest").reshape(-1, 4, 1, 2)
        distances = jnp.square(turned - weights["centroids"][None]).sum(-1)
        p = jax.nn.softmax(-distances / temperature, -1)
        hard = jax.nn.one_hot(distances.argmin(-1), 256)
        codes = hard - jax.lax.stop_gradient(p) + p
        decoded = jnp.einsum("nmc,mcd->nmd", codes, weights["centroids"])
        return jnp.matmul(decoded.reshape(x.shape), ROTATION, precision="highest")

    def slopes(decode):
        gradient = jax.grad(lambda w, x: jnp.sum(direction * decode(w, x)), (0, 1))
        return jax.jit(gradient)(jax.tree.map(jnp.asarray, TURNED), jnp.asarray(X))

    (ours, ours_x) = slopes(lambda w, x: quantize_vectors(w, x, temperature))
    (want, want_x) = slopes(soft_codes)
    for got, expected in (
        (ours["centroids"], want["centroids"]),
        (ours_x, want_x),
    ):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(ours["rotation"], 0)


def test_training_starts_from_a_fitted_transform(tmp_path, key):
    file = tmp_path / "transform.safetensors"
    for codebook in (PLAIN, TURNED):
        save_transform(make_pq_transform(codebook), file)
        start = init_codebook(key, 8, 4, file=str(file))
        assert set(start) == set(codebook)
        for name, array in codebook.items():
            np.testing.assert_array_equal(start[name], array)
    start = init_codebook(key, 8, 2, scale=0.1)
    assert start["centroids"].shape == (2, 256, 4)
    assert 0.09 < np.std(start["centroids"]) < 0.11


@pytest.mark.parametrize(
    "transform, parts, message",
    [
        (None, 3, "objective.parts is 3; it should divide the width 8 of a vector"),
        (None, 4, "transform.safetensors holds no transform"),
        ("int8()", 4, r"holds int8\(\); it should hold pq\(4\)"),
        ("pq", 2, "holds codes of 4 parts of vectors of width 8, not of 2 parts of"),
    ],
)
def test_a_start_that_does_not_fit_is_named(transform, parts, message, tmp_path, key):
    file = tmp_path / "transform.safetensors"
    if transform == "pq":
        save_transform(make_pq_transform(PLAIN), file)
    elif transform:
        fitted = fit_transform(transform, X, normalize=False)
        save_transform(VectorTransform(transform, (), fitted.quantizer), file)
    with pytest.raises(ValueError, match=message):
        init_codebook(key, 8, parts, file=str(file))
