"""Late interaction in training: packed rows, chunks and devices change nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.models import config
from research.models.pooling.registry import parse_pooling
from research.objectives.contrastive import contrastive, take_token_vectors
from research.types import Batch, Labels, Tokens

CFG = config.bert(
    vocab_size=40, width=16, depth=2, num_heads=2, mlp=24, max_len=32, dropout=0.0
)
ROWS, LENGTH = 8, 32  # at most four texts in a row


@pytest.fixture(scope="module")
def batch():
    """A query, its document and a hard negative in each row, with padding."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 9, (ROWS, 3))
    segment_ids = np.zeros((ROWS, LENGTH), np.int32)
    for row, counts in enumerate(lengths):
        numbers = np.repeat([1, 2, 3], counts)
        segment_ids[row, : len(numbers)] = numbers
    token_ids = rng.integers(5, 40, segment_ids.shape) * (segment_ids > 0)
    mask = (segment_ids > 0) & (token_ids % 7 != 0)
    tokens = Tokens(token_ids.astype(np.int32), segment_ids, mask)
    first = np.arange(ROWS, dtype=np.int32) * (LENGTH // 8)
    documents = (first[:, None] + np.array([[1, 2]], np.int32)).reshape(-1)
    return jax.tree.map(jnp.asarray, Batch(tokens, first, documents, Labels()))


def make_objective(
    name="full_size",
    micro_batch=0,
    pool="colbert(dim=8)",
    similarity="maxsim",
    **options,
):
    loss = build_loss({"name": "infonce", "temperature": 1.0}, similarity)
    size_loss = SIZE_LOSSES[name](loss, **options)
    return contrastive(CFG, parse_pooling(pool), size_loss, micro_batch=micro_batch)


def evaluate(objective, batch, key):
    params, frozen = objective.init(key)

    def loss(params):
        return objective.loss(params, frozen, batch, key).value

    return jax.jit(jax.value_and_grad(loss))(params)


def test_texts_are_taken_from_packed_rows(batch):
    scored = np.where(batch.tokens.pooling_mask, batch.tokens.segment_ids, 0)
    vectors = jnp.arange(1.0, ROWS * LENGTH + 1)[:, None]
    q = np.asarray(take_token_vectors(vectors, scored, batch.query_index, 8))
    d = np.asarray(take_token_vectors(vectors, scored, batch.document_index))
    assert q.shape == (ROWS, 8, 1) and d.shape == (2 * ROWS, LENGTH, 1)
    for row in range(ROWS):
        places = np.asarray(vectors).reshape(ROWS, LENGTH)[row]
        for text, segment in ((q[row], 1), (d[2 * row], 2), (d[2 * row + 1], 3)):
            want = places[scored[row] == segment][: len(text)]
            np.testing.assert_array_equal(text[: len(want), 0], want)
            assert not text[len(want) :].any()
    # Of every layer
    layers = jnp.stack([vectors, 2 * vectors], 1)
    both = take_token_vectors(layers, scored, batch.query_index, 8)
    np.testing.assert_array_equal(both, np.stack([q, 2 * q], 1))


def test_a_text_of_another_device_is_nan(batch):
    index = jnp.array([ROWS * LENGTH // 8], jnp.int32)
    vectors = jnp.ones((ROWS * LENGTH, 2))
    x = take_token_vectors(vectors, batch.tokens.segment_ids, index, 4)
    assert np.isnan(x).all()


@pytest.mark.parametrize(
    "options", [{}, {"pool": "slim(top=4)", "similarity": "slim"}], ids=str
)
def test_chunks_have_the_gradient_of_the_batch(batch, key, options):
    want = evaluate(make_objective(**options), batch, key)
    got = evaluate(make_objective(micro_batch=2, **options), batch, key)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_devices_change_nothing(batch, key):
    objective = make_objective("two_dimensional", pairs=((1, 4), (2, 8)))
    want = evaluate(objective, batch, key)
    with jax.set_mesh(sharding.make_mesh({"data": 4}, jax.devices()[:4])):
        got = evaluate(objective, batch, key)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_tokens_out_of_the_pooling_are_not_scored(batch, key):
    """A text without them has the loss of one in which they are no tokens."""
    objective = make_objective()
    params, _ = objective.init(key)
    output = objective.loss(params, {}, batch, key)
    assert 0 < float(output.metrics["positive_cosine"]) <= 1
    mask = jnp.ones_like(batch.tokens.pooling_mask)
    every = batch._replace(tokens=batch.tokens._replace(pooling_mask=mask))
    other = objective.loss(params, {}, every, key)
    assert abs(float(output.value - other.value)) > 1e-3


def test_heads_do_not_go_with_token_vectors():
    loss = SIZE_LOSSES["full_size"](build_loss({"name": "infonce"}, "maxsim"))
    pool = parse_pooling("colbert(dim=8)")
    with pytest.raises(ValueError, match="objective.head does not go with several"):
        contrastive(CFG, pool, loss, head="tanh")
    with pytest.raises(ValueError, match="objective.rank_weight does not go"):
        contrastive(CFG, pool, loss, rank_weight=0.1)
