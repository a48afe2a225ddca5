"""SLIM: MaxSim of sparse tokens in training, on the host and in search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses_summed_scores import check_8_devices

from research.inference import row_kinds
from research.inference.row_kinds import (
    ROW_KINDS,
    list_terms,
    make_bounds,
    score_slim,
    search_slim,
)
from research.inference.search import rank_documents
from research.inference.similarity import similarity
from research.losses import late_interaction
from research.losses.registry import build_loss
from research.losses.similarity import SIMILARITIES, TOKEN_SIMILARITIES
from research.transforms.token_rows import ROW_TERMS, join_rows, split_rows
from research.types import Labels, MultiVectors

V = 300  # ids take two digits


def draw(seed, texts, tokens, terms=3, vocabulary=12):
    """Rows [N, T, 4 K] and the same tokens [N, T, V], weights in steps of 1 / 4."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((texts, tokens, vocabulary)), axis=-1)
    ids = 250 + order[..., :terms]
    weights = rng.integers(0, 9, ids.shape).astype("f4") / 4
    # Shorter texts, and one without any token
    lengths = rng.integers(1, tokens + 1, texts)
    lengths[-1] = 0
    weights *= (np.arange(tokens) < lengths[:, None])[..., None]
    dense = np.zeros((texts, tokens, V), "f4")
    np.put_along_axis(dense, ids, weights, -1)
    return np.asarray(join_rows(ids, weights)), dense


def group(rows):
    """Rows of texts as an embedder has them: no padding, but one row of each text."""
    valid = rows.any(-1)
    valid[:, 0] |= ~valid.any(1)
    return MultiVectors(rows[valid], np.cumsum([0, *valid.sum(1)]))


def define_slim(q, d):
    """MaxSim of dense tokens [N, S, V] and [M, T, V]; padding scores 0."""
    return np.einsum("nsv,mtv->nmst", q, d).max(-1).sum(-1)


def test_every_kind_of_rows_has_its_scores():
    assert ROW_KINDS.keys() == ROW_TERMS.keys() <= TOKEN_SIMILARITIES.keys()


def test_scores_are_their_definition_in_training_and_on_the_host():
    (q, dense_q), (d, dense_d) = draw(0, 5, 4), draw(1, 9, 7)
    want = define_slim(dense_q, dense_d)
    assert np.ptp(want) > 1 and not want[-1].any() and not want[:, -1].any()
    np.testing.assert_allclose(SIMILARITIES["slim"](q, d), want, rtol=1e-6)
    np.testing.assert_array_equal(score_slim(group(q), group(d)), want)
    np.testing.assert_array_equal(similarity(group(q), group(d), "slim"), want)
    # Neither padding nor the order of tokens counts, and ids are exact in bfloat16
    padded = np.pad(d, ((0, 0), (0, 3), (0, 0)))[:, ::-1]
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, padded)]
    np.testing.assert_allclose(SIMILARITIES["slim"](*half), want, rtol=1e-6)


def test_all_terms_of_a_vocabulary_give_the_dense_maxsim():
    rng = np.random.default_rng(0)
    dense = [rng.random((n, t, 7), np.float32) for n, t in ((3, 4), (5, 6))]
    rows = [join_rows(np.broadcast_to(np.arange(7), x.shape), x) for x in dense]
    want = late_interaction.maxsim(*dense, score=lambda x, y: x @ y.T)
    np.testing.assert_allclose(SIMILARITIES["slim"](*rows), want, rtol=1e-6)


def test_gradients_are_those_of_the_dense_maxsim_also_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = ((4, 3, 5), (6, 7, 5))
    ids = [np.argsort(rng.random((*s[:2], 20)))[..., :5] for s in shapes]
    weights = [rng.random(s, np.float32) for s in shapes]

    def spread(ids, weights):  # [N, T, V]
        at = jnp.expand_dims(jnp.arange(20), (0, 1, 2))
        return jnp.sum(jnp.where(ids[..., None] == at, weights[..., None], 0), -2)

    def sum_dense(*weights):
        q, d = map(spread, ids, weights)
        return jnp.sin(jnp.einsum("nsv,mtv->nmst", q, d).max(-1).sum(-1)).sum()

    def sum_slim(*weights):
        scores = SIMILARITIES["slim"](*map(join_rows, ids, weights))
        return jnp.sin(scores).sum()

    want = jax.value_and_grad(sum_dense, (0, 1))(*weights)
    # Blocks of two documents
    monkeypatch.setattr(late_interaction, "BLOCK_SCORES", 2 * 4 * 3 * 7)
    got = jax.jit(jax.value_and_grad(sum_slim, (0, 1)))(*weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want
    )
    # Numbers of all pairs of tokens are kept for no gradient
    program = str(jax.make_jaxpr(jax.grad(sum_slim))(*weights))
    assert "f32[12,14]" in program and "f32[12,42]" not in program


def test_the_bound_is_above_every_score():
    q, d = (group(draw(seed, n, t)[0]) for seed, n, t in ((0, 20, 5), (1, 60, 7)))
    sums, largest = make_bounds(*list_terms(q, d))
    bounds, scores = (sums @ largest.T).toarray(), score_slim(q, d)
    assert (bounds >= scores).all() and (bounds > scores + 1).any()
    # It is reached by a document of one token
    one = MultiVectors(d.vectors[:9], np.arange(10))
    sums, largest = make_bounds(*list_terms(q, one))
    np.testing.assert_array_equal((sums @ largest.T).toarray(), score_slim(q, one))


@pytest.mark.parametrize("size", [1, 400, 1 << 20])
def test_search_ranks_by_the_scores(size, monkeypatch):
    monkeypatch.setattr(row_kinds, "MIN_CANDIDATES", 2)
    # Few terms in common, so that bounds leave many documents out
    q, d = (
        group(draw(seed, n, t, vocabulary=40)[0])
        for seed, n, t in ((0, 8, 4), (1, 90, 6))
    )
    scored, score = [], row_kinds.score_terms

    def record(queries, documents):
        scored.append(documents.count)
        return score(queries, documents)

    monkeypatch.setattr(row_kinds, "score_terms", record)
    scores, precedence = score_slim(q, d), np.arange(90)[::-1]
    for k, ties in ((1, None), (7, precedence), (200, None)):
        keys = np.broadcast_to(np.arange(90) if ties is None else ties, scores.shape)
        order = np.lexsort((keys, -scores), axis=1)[:, :k]
        want = np.take_along_axis(scores, order, 1), order
        scored.clear()
        got = search_slim(q, d, k, precedence=ties, scores_per_step=size)
        np.testing.assert_array_equal(got, want)
        assert size < 1 << 20 or k > 90 or sum(scored) < 0.7 * scores.size
    np.testing.assert_array_equal(rank_documents(q, d, 200, similarity="slim"), want)


def test_the_sum_of_weights_is_the_regularizer():
    (q, dense_q), (d, dense_d) = draw(0, 4, 4), draw(1, 8, 7)
    loss = build_loss({"name": "l1"}, "slim")
    got = loss(jnp.asarray(q), jnp.asarray(d), Labels())
    want = dense_q.sum((1, 2)) + dense_d.sum((1, 2)).reshape(4, 2).mean(1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # Of one vector per text, the sum of its absolute values
    x = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    got = build_loss({"name": "l1"}, "dot")(x, 2 * x, Labels())
    np.testing.assert_allclose(got, [9, 10.5])


def test_8_devices_equal_1():
    (q, _), (d, _) = draw(0, 8, 4), draw(1, 16, 5)
    terms, weights = "infonce(temperature=1.0) | l1()", (1.0, 1e-2)
    loss = build_loss(
        {"name": "weighted_sum", "terms": terms, "weights": weights}, "slim"
    )
    check_8_devices(loss, q, d)


def test_rows_of_another_pooling_are_refused():
    texts = MultiVectors(np.full((3, 8), 0.5, "f4"), np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="not those of the pooling slim"):
        score_slim(texts, texts)


def test_rows_hold_ids_and_weights():
    rows = join_rows(np.array([[70_000, 5], [299, 1]]), np.array([[0.5, 0.0], [0, 0]]))
    vectors, ids, weights = split_rows(rows, "slim")
    assert vectors.shape == (2, 0) and not rows[1].any()
    np.testing.assert_array_equal(ids, [[70_000, 0], [0, 0]])
    np.testing.assert_array_equal(weights, [[0.5, 0], [0, 0]])
