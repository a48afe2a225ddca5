"""Losses over the vocabulary against loops over texts and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import rows_of

from research.losses.token_prediction import bag_of_words, cross_entropy

VOCAB, WIDTH = 23, 6


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("logits", [1 << 24, 5 * VOCAB, 1])
def test_cross_entropy_is_the_same_in_chunks(key, logits):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (17, WIDTH))
    table = jax.random.normal(keys[1], (VOCAB, WIDTH))
    bias = jnp.arange(VOCAB, dtype=jnp.float32) / 7
    labels = jax.random.randint(keys[2], (17,), 0, VOCAB)
    valid = jnp.arange(17) % 3 > 0

    def mean(x, table, bias):
        weight = valid.astype(jnp.float32) / valid.sum(dtype=jnp.float32)
        total, _ = cross_entropy(x, table, bias, labels, weight, logits=logits)
        return total

    expected = log_softmax(np.asarray(x) @ np.asarray(table).T + np.asarray(bias))
    expected = -expected[np.arange(17), labels][np.asarray(valid)].mean()

    def plain(x, table, bias):
        log_p = jax.nn.log_softmax(x @ table.T + bias[None])
        return -log_p[np.arange(17), labels][np.asarray(valid)].mean()

    whole = jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(x, table, bias)
    value, got = jax.jit(jax.value_and_grad(mean, (0, 1, 2)))(x, table, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(got, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("logits", [1 << 24, 5 * VOCAB])
def test_cross_entropy_says_each_loss_and_what_was_right(key, logits):
    x = jax.random.normal(key, (17, WIDTH))
    table = jax.random.normal(jax.random.key(1), (VOCAB, WIDTH))
    bias = jnp.zeros(VOCAB)
    best = (x @ table.T).argmax(1).astype(jnp.int32)
    labels = jnp.where(jnp.arange(17) % 2 == 0, best, (best + 1) % VOCAB)
    weight = jnp.arange(17, dtype=jnp.float32)
    total, each = cross_entropy(x, table, bias, labels, weight, logits=logits)
    assert each.correct.tolist() == [i % 2 == 0 for i in range(17)]
    expected = -log_softmax(x @ table.T)[np.arange(17), labels]
    np.testing.assert_allclose(each.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(total, (np.arange(17) * expected).sum(), rtol=1e-5)


def test_half_precision_states_have_gradients_of_their_type(key):
    x = jax.random.normal(key, (9, WIDTH), jnp.bfloat16)
    table = jax.random.normal(jax.random.key(1), (VOCAB, WIDTH))
    bias, labels = jnp.zeros(VOCAB), jnp.arange(9, dtype=jnp.int32)
    weight = jnp.full(9, 1 / 9)

    def mean(x, table):
        return cross_entropy(x, table, bias, labels, weight, logits=2 * VOCAB)[0]

    half = jax.grad(mean, (0, 1))(x, table)
    full = jax.grad(mean, (0, 1))(x.astype(jnp.float32), table)
    assert half[0].dtype == jnp.bfloat16 and half[1].dtype == jnp.float32
    for a, b in zip(half, full, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2e-3)


TEXTS = [[[2, 9, 9, 8, 3], [2, 5, 6, 7, 3]], [[2, 11, 12, 3]]]


def bag_by_loop(x, table, bias, texts):
    total = 0.0
    for r, row in enumerate(texts):
        place = 0
        for text in row:
            z = x[r, place : place + len(text)] @ table.T + bias
            log_p = log_softmax(z[1:].max(0))
            ordinary = text[1:-1]
            total -= sum(log_p[v] / len(ordinary) for v in set(ordinary))
            place += len(text)
    return total


@pytest.mark.parametrize("length", [10, 13])
def test_bag_of_words_is_over_the_distinct_tokens_of_each_text(key, length):
    rows = rows_of(TEXTS, length)
    x = jax.random.normal(key, (2, 13, WIDTH))[:, :length]
    table = jax.random.normal(jax.random.key(5), (VOCAB, WIDTH))
    bias = jnp.arange(VOCAB, dtype=jnp.float32) / 5
    total, count = bag_of_words(x, table, bias, rows, 3)
    assert count == 3
    expected = bag_by_loop(*map(np.asarray, (x, table, bias)), TEXTS)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: bag_of_words(x, table, bias, rows, 3)[0])(x)
    assert np.isfinite(gradient).all() and not gradient[:, 0].any()  # [CLS]
