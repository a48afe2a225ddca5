"""An encoder and the codes of its documents, trained together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_objectives_classification import batch as make_batch
from test_objectives_contrastive import CFG, over_sizes

from configs import bidr
from research import sharding
from research.experiment.config_keys import check_keys
from research.models import encoder
from research.models.lora import full_params
from research.models.pooling.registry import BASIC_POOLINGS, parse_pooling
from research.objectives.product_quantization import product_quantization
from research.objectives.tuning import lora
from research.transforms.pipeline import make_pq_transform
from research.types import max_segments

batch = make_batch
MEAN = BASIC_POOLINGS["mean"]
SURE = dataclasses.replace(CFG, dropout=0.0)


def normalize(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def infonce(q, d, temperature=0.05):
    """[B] of cosines with the documents of other queries, which all differ."""
    logits = normalize(q) @ normalize(d).T / temperature
    peak = logits.max(1)
    return np.log(np.exp(logits - peak[:, None]).sum(1)) + peak - np.diag(logits)


@pytest.mark.parametrize("unit", [True, False])
def test_the_loss_is_that_of_vectors_and_of_decoded_documents(key, batch, unit):
    options = {"parts": 4, "reconstruction_weight": 0.5, "unit": unit}
    objective = product_quantization(SURE, MEAN, over_sizes("full_size"), **options)
    params, frozen = objective.init(key)
    assert params["codebook"]["centroids"].shape == (4, 256, 4)
    value, metrics, _ = jax.jit(objective.loss)(params, frozen, batch, key)
    # The vectors of the encoder, and what the model's transform makes of documents
    slots = max_segments(batch.tokens.token_ids.shape[1])
    x = encoder.encode(params["encoder"], batch.tokens, SURE, MEAN, max_segments=slots)
    q, d = (np.asarray(x[i]) for i in (batch.query_index, batch.document_index))
    if unit:
        q, d = normalize(q), normalize(d)
    quantizer = make_pq_transform(params["codebook"]).quantizer
    decoded = quantizer.decode(quantizer.encode(d))
    error = np.square(d - decoded).sum(1).mean()
    dense, codes = infonce(q, d).mean(), infonce(q, decoded).mean()
    np.testing.assert_allclose(metrics["dense"], dense, rtol=1e-4)
    np.testing.assert_allclose(metrics["codes"], codes, rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction_error"], error, rtol=1e-4)
    np.testing.assert_allclose(value, dense + codes + 0.5 * error, rtol=1e-4)


@pytest.mark.slow  # compiled for 1 and for 8 devices
def test_one_device_equals_eight_and_the_codebook_learns(key, batch):
    options = {"parts": 4}
    objective = product_quantization(CFG, MEAN, over_sizes("full_size"), **options)
    params, _ = objective.init(key)

    @jax.jit
    def gradient(params, batch):
        def measure(params):
            return objective.loss(params, {}, batch, key).value

        return jax.value_and_grad(measure)(params)

    one = gradient(params, jax.tree.map(jnp.asarray, batch))
    assert np.abs(one[1]["codebook"]["centroids"]).max() > 1e-3
    mesh = sharding.make_mesh({"data": -1})
    with jax.set_mesh(mesh):
        split = gradient(params, sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(split[0], one[0], rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
        jax.device_get(split[1]),
        jax.device_get(one[1]),
    )


def test_adapters_and_the_codebook_are_trained(key):
    objective = product_quantization(CFG, MEAN, over_sizes("full_size"), parts=4)
    params, frozen = jax.eval_shape(lora(objective).init, key)
    assert set(params) == {"encoder", "codebook"}
    assert set(full_params(params, frozen)) == {"encoder", "codebook"}


def test_codes_are_of_the_vectors_that_the_model_gives():
    config = bidr.get_config("tiny")
    check_keys(config)
    config.normalize = False
    message = "objective.unit is True and normalize is False; they should be equal"
    with pytest.raises(ValueError, match=message):
        check_keys(config)


def test_vectors_without_codes_are_named():
    with pytest.raises(ValueError, match="needs one vector per text, not sparse ones"):
        pool = parse_pooling("csr(latents=8, k=2)")
        product_quantization(CFG, pool, over_sizes("full_size"))
    with pytest.raises(ValueError, match="has the full size alone: no size_loss"):
        product_quantization(CFG, MEAN, over_sizes("starbucks_sts"))
