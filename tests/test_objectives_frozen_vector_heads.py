"""Heads over frozen vectors: the autoencoder against NumPy, and what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses.distillation import backward_compatible
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.losses.similarity import pair_scores
from research.models.config import bert
from research.models.pooling.registry import parse_pooling
from research.objectives.contrastive import contrastive
from research.objectives.frozen.vector_heads import (
    compute_autoencoder_loss,
    sparse_autoencoder,
    vector_head,
)
from research.objectives.tuning import frozen_encoder
from research.types import Batch, Labels, Tokens

RANDOM = np.random.default_rng(0)
OPTIONS = {"k": 2, "dead_weight": 0.5, "dead_latents": 3, "dead_after": 4}
CFG = bert(vocab_size=50, width=8, depth=1, num_heads=2, mlp=16, max_len=16)


def select(a, k):
    largest = np.argsort(-a, axis=1)[:, :k]
    z = np.zeros_like(a)
    np.put_along_axis(z, largest, np.take_along_axis(a, largest, 1), 1)
    return np.maximum(z, 0)


def test_the_autoencoder_is_that_of_numpy():
    x, w = RANDOM.normal(size=(30, 5)), RANDOM.normal(size=(5, 12))
    bias, center = 0.1 * RANDOM.normal(size=12), 0.1 * RANDOM.normal(size=5)
    idle = np.array([9, 0, 9, 0, 0, 9, 0, 0, 9, 0, 0, 4])
    weights = {"kernel": w, "bias": bias, "center": center}
    weights = {name: jnp.asarray(part, jnp.float32) for name, part in weights.items()}
    vectors = jnp.asarray(x, jnp.float32)
    value, steps, metrics = compute_autoencoder_loss(
        weights, vectors, jnp.asarray(idle, jnp.int32), **OPTIONS
    )
    a = (x - center) @ w + bias
    errors = [np.mean((x - center - select(a, k) @ w.T) ** 2) for k in (2, 8)]
    rest = x - center - select(a, 2) @ w.T
    dead = np.mean((rest - select(a * (idle > 4), 3) @ w.T) ** 2)
    dead /= np.mean((rest - rest.mean(0)) ** 2)
    want = errors[0] + errors[1] / 8 + 0.5 * dead
    np.testing.assert_allclose(value, want, rtol=1e-5)
    active = (select(a, 2) > 1e-5).any(0)
    np.testing.assert_array_equal(steps, np.where(active, 0, idle + 1))
    assert float(metrics["dead_latents"]) == pytest.approx(4 / 12)
    # Nothing is dead: no such term, and a finite gradient
    alive = jnp.zeros(12, jnp.int32)
    value, _, _ = compute_autoencoder_loss(weights, vectors, alive, **OPTIONS)
    np.testing.assert_allclose(value, errors[0] + errors[1] / 8, rtol=1e-5)
    slopes = jax.grad(
        lambda w: compute_autoencoder_loss(w, vectors, alive, **OPTIONS)[0]
    )(weights)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


def make_batch(vectors=False):
    ids = jnp.asarray(RANDOM.integers(5, 50, (8, 8)), jnp.int32)
    tokens = Tokens(ids, jnp.ones((8, 8), jnp.int32), jnp.ones((8, 8), bool))
    ids = jnp.arange(16, dtype=jnp.uint32).reshape(8, 2)
    labels = Labels(query_id=ids[:4], document_id=ids[4:])
    if vectors:
        q, d = (jnp.asarray(RANDOM.normal(size=(4, 8)), jnp.float32) for _ in "qd")
        labels = labels._replace(query_vector=q, document_vector=d)
    index = jnp.arange(8, dtype=jnp.int32)
    return Batch(tokens, index[:4], index[4:], labels)


def make_objective(make, pool, **options):
    loss = build_loss({"name": "infonce", "temperature": 0.05}, "cosine")
    return make(CFG, parse_pooling(pool), SIZE_LOSSES["full_size"](loss), **options)


@pytest.mark.parametrize(
    "make, pool, options",
    [
        (sparse_autoencoder, "csr(latents=24, k=4)", {"k": 4}),
        (vector_head, "bebr(dim=16)", {}),
    ],
)
def test_only_the_head_is_trained(make, pool, options):
    objective = frozen_encoder(make_objective(make, pool, **options))
    params, frozen = objective.init(jax.random.key(0))
    assert list(params["encoder"]) == ["pooling"]
    batch = make_batch()
    (value, output), slopes = jax.value_and_grad(
        lambda p: (lambda o: (o.value, o))(
            objective.loss(p, frozen, batch, jax.random.key(1))
        ),
        has_aux=True,
    )(params)
    assert np.isfinite(value) and any(
        np.abs(slope).max() > 0 for slope in jax.tree.leaves(slopes)
    )
    # With vectors of a file, texts do not count
    stored = frozen_encoder(make_objective(make, pool, stored=True, **options))
    with_vectors = make_batch(vectors=True)
    first = stored.loss(params, frozen, with_vectors, jax.random.key(1))
    tokens = batch.tokens._replace(token_ids=0 * batch.tokens.token_ids)
    again = with_vectors._replace(tokens=tokens)
    second = stored.loss(params, frozen, again, jax.random.key(1))
    np.testing.assert_allclose(first.value, second.value, rtol=1e-5)
    if output.frozen is not None:
        assert output.frozen["own"]["idle_steps"].shape == (24,)


@pytest.mark.parametrize(
    "pool, message",
    [
        ("mean", "needs a pooling that maps vectors: csr, bebr"),
        ("bebr(dim=8)", "sparse_autoencoder needs the pooling csr"),
    ],
)
def test_a_pooling_without_latents_is_named(pool, message):
    with pytest.raises(ValueError, match=message):
        make_objective(sparse_autoencoder, pool)


def test_a_frozen_encoder_needs_something_to_train():
    loss = build_loss({"name": "infonce"}, "cosine")
    objective = contrastive(CFG, parse_pooling("mean"), SIZE_LOSSES["full_size"](loss))
    with pytest.raises(ValueError, match="the pooling has no parameters to train"):
        jax.eval_shape(frozen_encoder(objective).init, jax.random.key(0))


def test_vectors_that_are_not_there_are_named():
    objective = make_objective(vector_head, "bebr(dim=8)", stored=True)
    params, frozen = jax.eval_shape(objective.init, jax.random.key(0))
    with pytest.raises(ValueError, match="needs vectors of 8 dims of queries and doc"):
        jax.eval_shape(objective.loss, params, frozen, make_batch(), jax.random.key(0))


def test_new_queries_are_compared_with_old_documents():
    q, d, old = (jnp.asarray(RANDOM.normal(size=(5, 4)), jnp.float32) for _ in "qdo")
    labels = Labels(query_vector=old, document_vector=old)
    ours = backward_compatible(pair_scores(q, d, "cosine"), labels, temperature=0.1)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, old))
    logits = a @ b.T / 0.1
    want = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    np.testing.assert_allclose(ours, want, rtol=1e-5)
    labels = labels._replace(document_vector=old[:, :3])
    with pytest.raises(ValueError, match=r"are \[5, 3\], and the model's \[5, 4\]"):
        backward_compatible(pair_scores(q, d, "cosine"), labels)
