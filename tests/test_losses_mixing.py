import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses.mixing import blend, draw_pair_weights
from research.losses.registry import build_loss
from research.types import Labels

BATCH, WAYS, WIDTH = 8, 4, 10  # three hard negatives


def embeddings(key):
    a, b = jax.random.split(key)
    q = jax.random.normal(a, (BATCH, WIDTH))
    return q, jax.random.normal(b, (BATCH * WAYS, WIDTH))


def labels_at(draw, document_ids=None):
    ids = jnp.arange(BATCH * WAYS, dtype=jnp.uint32)
    if document_ids is not None:
        ids = jnp.asarray(document_ids, jnp.uint32)
    return Labels(
        query_id=jnp.stack([ids[:BATCH], 100 + jnp.arange(BATCH, dtype=jnp.uint32)], 1),
        document_id=jnp.stack([ids, ids], 1),
        draw=jnp.full(BATCH, draw, jnp.uint32),
    )


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pair_weights(draw, pairs):
    """The weights of a step, as the loss draws them."""
    key = jax.random.key(draw)
    return np.asarray(draw_pair_weights(key, (BATCH, pairs, WAYS - 1)), np.float64)


def loop(q, d, weights, temperature, *, lists=False, same=()):
    """The same loss, one logit at a time; documents in `same` equal a positive."""
    q, d = unit(q), unit(d)
    losses = []
    for i in range(BATCH):
        columns, hidden = [], {j for j, row in same if row == i}
        for j in range(BATCH * WAYS):
            if j not in hidden:
                columns.append(q[i] @ d[j])
        for j in range(BATCH):
            negatives = d[j * WAYS + 1 : (j + 1) * WAYS]
            rows = list(weights[j]) if weights is not None else []
            if lists:
                exp = np.exp(negatives @ q[j] / temperature)
                rows.append(exp / exp.sum())
            for row in rows:
                parents = {j * WAYS + 1 + n for n in np.flatnonzero(row)}
                if not parents & hidden:
                    columns.append(q[i] @ unit(row @ negatives))
        logits = np.array(columns) / temperature
        losses.append(np.log(np.exp(logits).sum()) - q[i] @ d[i * WAYS] / temperature)
    return losses


@pytest.mark.parametrize("pairs,lists", [(2, False), (0, True), (1, True)])
def test_mixtures_are_further_negatives(key, pairs, lists):
    q, d = embeddings(key)
    loss = build_loss(
        {"name": "infonce", "temperature": 0.1}
        | {"mixed_pairs": pairs, "mixed_list": lists}
    )
    weights = pair_weights(7, pairs) if pairs else None
    got = jax.jit(loss.__call__)(q, d, labels_at(7))
    expected = loop(q, d, weights, 0.1, lists=lists)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # Other steps have other mixtures, and lists have no draws
    other = jax.jit(loss.__call__)(q, d, labels_at(8))
    assert np.allclose(got, other) == (not pairs)


def test_a_mixture_with_a_parent_that_is_no_negative_is_left_out(key):
    q, d = embeddings(key)
    # The first hard negative of query 1 has the text of query 0's positive
    ids = np.arange(BATCH * WAYS)
    ids[WAYS + 1] = 0
    options = {"temperature": 0.1, "mixed_pairs": 2, "mixed_list": True}
    loss = build_loss({"name": "infonce", **options})
    got = jax.jit(loss.__call__)(q, d, labels_at(7, ids))
    weights, same = pair_weights(7, 2), [(WAYS + 1, 0)]
    expected = loop(q, d, weights, 0.1, lists=True, same=same)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_mixture_at_one_parent_is_that_parent():
    negatives = jax.random.normal(jax.random.key(1), (2, 3, 5))
    weights = jnp.eye(3)[None].repeat(2, axis=0)
    np.testing.assert_array_equal(blend(weights, negatives), negatives.reshape(6, 5))


def test_places_are_those_of_a_beta_distribution():
    weights = draw_pair_weights(jax.random.key(0), (500, 20, 4))
    weights = np.asarray(weights).reshape(-1, 4)
    assert ((weights > 0).sum(1) == 2).all()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    places = weights[weights > 0]
    assert abs(places.mean() - 0.5) < 0.005 and abs(places.var() - 0.05) < 0.002
    # Each pair of parents is as likely
    counts = (weights > 0).sum(0) / len(weights)
    np.testing.assert_allclose(counts, 0.5, atol=0.02)


def test_8_devices_equal_1_and_both_parents_learn(key):
    q, d = embeddings(key)
    options = {"temperature": 0.1, "mixed_pairs": 1, "mixed_list": True}
    loss = build_loss({"name": "infonce", "negatives": "own", **options})

    @jax.jit
    def value_and_grad(q, d, labels):
        def mean(q, d):
            return sharding.map_over_data(lambda *x: loss(*x).mean(), q, d, labels)

        return jax.value_and_grad(mean, (0, 1))(q, d)

    arguments = (q, d, labels_at(7))
    one = value_and_grad(*arguments)
    mesh = sharding.make_mesh({"data": 8})
    with jax.set_mesh(mesh):
        texts = jax.tree.map(np.asarray, arguments)
        many = value_and_grad(*sharding.put_batch(texts, mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many
    )
    assert (np.abs(np.asarray(one[1][1])).sum(1) > 0).all()


def test_mixtures_need_two_hard_negatives(key):
    q, d = embeddings(key)
    loss = build_loss({"name": "infonce", "mixed_pairs": 1})
    with pytest.raises(ValueError, match="at least two hard negatives .* which has 1"):
        loss(q, d[: 2 * BATCH], Labels())
    with pytest.raises(ValueError, match="which has none"):
        loss(q, d[:BATCH], Labels())
