"""SPLADE's and SLIM's weights are their definition, in packed rows and for queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import encoder
from research.models.config import bert
from research.models.heads import apply_mlm_head
from research.models.pooling.lexical import pool_logits
from research.models.pooling.registry import add_pooling_params, parse_pooling
from research.models.pooling.splade import ACTIVATIONS, keep_largest, mark_tokens
from research.transforms.token_rows import split_rows
from research.types import Tokens

CFG = bert(vocab_size=30, width=16, depth=2, num_heads=2, mlp=24, max_len=16)
LOGITS = np.array([[1, -2, 0, 3], [2, 0.5, -1, 1], [9, 9, 9, 9]], "f4")


@pytest.fixture(scope="module")
def tokens():
    """Two texts in each row, tokens out of the pooling, padding."""
    ids = np.random.default_rng(0).integers(1, 30, (3, 12), dtype=np.int32)
    segment_ids = np.array([[1] * 5 + [2] * 4 + [0] * 3] * 3, np.int32)
    mask = (segment_ids > 0) & (ids % 5 != 0)
    return Tokens(ids, segment_ids, mask)


def make_params(pool, key):
    params = add_pooling_params(key, encoder.init(key, CFG), CFG, pool)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)


@pytest.mark.parametrize(
    ("activation", "reduce", "want"),
    [
        ("log1p", "max", [1.098612, 0.405465, 0, 1.386294]),
        ("log1p", "sum", [1.791759, 0.405465, 0, 2.079442]),
        ("log1p_twice", "max", [0.741276, 0.340368, 0, 0.869742]),
    ],
)
def test_weights_of_three_tokens(activation, reduce, want):
    activate = ACTIVATIONS[activation]

    def pool(logits, mask):
        weights = jnp.where(mask[:, None], activate(logits), 0.0)
        return weights.max(0) if reduce == "max" else weights.sum(0)

    mask = jnp.array([[[True, True, False], [False] * 3]])
    arguments = (LOGITS[None], np.eye(4, dtype="f4"), jnp.zeros(4), mask)
    got = pool_logits(*arguments, pool)
    np.testing.assert_allclose(got[0, 0], want, atol=1e-5)
    assert not got[0, 1].any()  # a text without tokens


@pytest.mark.parametrize(
    "text", ["splade", 'splade(aggregate="sum")', "splade(top=3)", "splade_doc"]
)
def test_weights_of_documents_are_the_definition(text, tokens, key):
    pool = parse_pooling(text)
    params = make_params(pool, key)
    got = encoder.encode(params, tokens, CFG, pool, max_segments=2).reshape(3, 2, 30)
    states = encoder.forward(params, tokens, CFG).hidden_states
    head = params["pooling"]["head"]
    table = params["embed"]["token"]["embedding"]
    logits = apply_mlm_head(head, states, CFG) @ table.T + head["bias"][None, None]
    weights = np.log1p(np.maximum(logits, 0))
    for row in range(3):
        for text_number in (1, 2):
            mask = (tokens.segment_ids[row] == text_number) & tokens.pooling_mask[row]
            of_text = weights[row][mask]
            want = of_text.sum(0) if "sum" in text else of_text.max(0)
            if "top" in text:
                want = np.where(want >= np.sort(want)[-3], want, 0)
            np.testing.assert_allclose(got[row, text_number - 1], want, atol=1e-5)


def test_tokens_have_their_largest_weights(tokens, key):
    pool = parse_pooling("slim(top=4)")
    params = make_params(pool, key)
    rows = encoder.encode(params, tokens, CFG, pool, max_segments=2)
    assert pool.width(CFG) == rows.shape[1] == 16
    _, ids, weights = (np.asarray(x) for x in split_rows(rows, "slim"))
    states = encoder.forward(params, tokens, CFG).hidden_states
    head, table = params["pooling"]["head"], params["embed"]["token"]["embedding"]
    logits = apply_mlm_head(head, states, CFG) @ table.T + head["bias"][None, None]
    want = np.log1p(np.maximum(logits, 0)).reshape(-1, 30)
    # Not those that are not pooled, nor the first one of each text
    mask = tokens.pooling_mask.copy()
    for row, segments in zip(mask, tokens.segment_ids, strict=True):
        for text_number in (1, 2):
            row[np.flatnonzero(row & (segments == text_number))[0]] = False
    mask = mask.reshape(-1)
    assert not rows[~mask].any() and mask.any()
    largest = -np.sort(-want, axis=1)[:, :4]
    np.testing.assert_allclose(weights[mask], largest[mask], atol=1e-5)
    got = np.take_along_axis(want, ids.astype(int), 1)
    valid = weights > 0
    np.testing.assert_allclose(got[valid], weights[valid], atol=1e-5)


def test_queries_are_the_set_of_their_tokens(tokens, key):
    pool = parse_pooling("splade_doc(learn_queries=True)")
    params = make_params(pool, key)

    def encode(params, **options):
        return encoder.encode(
            params, tokens, CFG, pool, max_segments=2, as_queries=True, **options
        )

    got = np.asarray(encode(params)).reshape(3, 2, 30)
    weights = np.asarray(params["pooling"]["query_weights"])
    for row in range(3):
        mask = (tokens.segment_ids[row] == 1) & tokens.pooling_mask[row]
        want = np.zeros(30)
        ids = tokens.token_ids[row][mask]
        want[ids] = weights[ids]
        np.testing.assert_allclose(got[row, 0], want, rtol=1e-6)
    layers = encode(params, every_layer=True)
    np.testing.assert_array_equal(layers[:, 1], got.reshape(6, 30))
    # The gradient of a weight is the number of texts with its token
    gradient = jax.grad(lambda p: encode(p).sum())(params)["pooling"]["query_weights"]
    np.testing.assert_allclose(gradient, (got != 0).sum((0, 1)), rtol=1e-6)


def test_weights_of_queries_are_only_learned_if_asked_for(tokens, key):
    pool = parse_pooling("splade_doc")
    params = make_params(pool, key)

    def loss(params):
        return encoder.encode(
            params, tokens, CFG, pool, max_segments=2, as_queries=True
        ).sum()

    assert not jax.grad(loss)(params)["pooling"]["query_weights"].any()


def test_repeated_tokens_count_once():
    ids, mask = jnp.array([[3, 1, 3]]), jnp.array([[[True, False, True]]])
    np.testing.assert_array_equal(mark_tokens(ids, mask, 5)[0, 0], [0, 0, 0, 1, 0])


def test_the_largest_weights_are_kept():
    got = keep_largest(jnp.array([0.1, 3.0, 2.0, 0.5]), 2)
    np.testing.assert_allclose(got, [0, 3, 2, 0])


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="aggregate is 'mean'; allowed: max, sum"):
        parse_pooling('splade(aggregate="mean")')
    with pytest.raises(ValueError, match="activation is 'relu'"):
        parse_pooling('splade(activation="relu")')
    with pytest.raises(ValueError, match="pool.top is 0; a token needs at least one"):
        parse_pooling("slim(top=0)")
