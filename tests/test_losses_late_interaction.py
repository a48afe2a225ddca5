"""MaxSim: its definition, blocks, padding; and as the similarity of losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses import late_interaction
from research.losses.late_interaction import EMPTY_DOCUMENT, maxsim
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.losses.similarity import SIMILARITIES, PairScores, dot, gather_pairs
from research.types import Labels

dot_maxsim = partial(maxsim, score=dot)
# Unit vectors of a plane: two queries and three documents, the first with three tokens.
QUERIES = np.array([[[1, 0], [0.6, 0.8]], [[0, 1], [1, 0]]], "f4")
DOCUMENTS = np.array(
    [
        [[0.8, 0.6], [0, 1], [-1, 0]],
        [[0.9, 0.4358899], [0.6, 0.8], [0, 0]],
        [[-0.6, -0.8], [-1, 0], [0, 0]],
    ],
    "f4",
)


def draw(seed=0, queries=6, documents=12, width=16):
    """Queries of 5 and documents of 7 tokens; some tokens are zeros."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(queries, 5, width)).astype("f4")
    d = rng.normal(size=(documents, 7, width)).astype("f4")
    q *= rng.random((queries, 5, 1)) < 0.8
    d *= rng.random((documents, 7, 1)) < 0.8
    d[:, 0] = 1.0  # no document is empty
    return q, d


def define_maxsim(q, d):
    """By the definition, token by token."""
    scores = np.zeros((len(q), len(d)))
    for i, query in enumerate(q):
        for j, document in enumerate(d):
            tokens = document[np.any(document != 0, 1)]
            scores[i, j] = sum((tokens @ x).max() for x in query if np.any(x != 0))
    return scores


def test_scores_of_a_plane():
    want = [[1.76, 1.90, -1.2], [1.8, 1.7, -0.6]]
    got = dot_maxsim(QUERIES, DOCUMENTS)
    np.testing.assert_allclose(got, want, atol=1e-6)
    mean = dot_maxsim(QUERIES, DOCUMENTS, mean=True)
    np.testing.assert_allclose(mean, np.array(want) / 2, atol=1e-6)


def test_padding_is_no_token():
    q, d = draw()
    padded = np.pad(d, ((0, 0), (0, 9), (0, 0)))
    longer = np.pad(q, ((0, 0), (0, 3), (0, 0)))
    want = dot_maxsim(q, d)
    np.testing.assert_allclose(want, define_maxsim(q, d), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dot_maxsim(longer, padded), want, rtol=1e-6)
    order = np.random.default_rng(1).permutation(7)
    np.testing.assert_allclose(dot_maxsim(q, d[:, order]), want, rtol=1e-6)


def test_a_document_without_tokens_is_below_all_others():
    q, d = draw()
    d[3] = 0
    scores = np.asarray(dot_maxsim(q, d))
    assert (scores[:, 3] == EMPTY_DOCUMENT).all()
    assert np.delete(scores, 3, 1).min() > -1e3
    gradient = jax.grad(lambda d: dot_maxsim(q, d).sum())(d)
    assert np.isfinite(gradient).all() and not np.any(gradient[3])


def test_blocks_of_documents_change_nothing(monkeypatch):
    q, d = draw()

    def loss(q, d):
        return jnp.sum(jnp.sin(SIMILARITIES["maxsim"](q, d)))

    want = jax.value_and_grad(loss, (0, 1))(q, d)
    # Blocks of two documents
    monkeypatch.setattr(late_interaction, "BLOCK_SCORES", 2 * 6 * 5 * 7)
    assert late_interaction.count_blocks(12, 6 * 5 * 7) == 6
    got = jax.jit(jax.value_and_grad(loss, (0, 1)))(q, d)
    for ours, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_scores_of_all_tokens_are_never_in_memory(monkeypatch):
    monkeypatch.setattr(late_interaction, "BLOCK_SCORES", 2 * 6 * 5 * 7)
    q, d = draw()
    program = str(jax.make_jaxpr(jax.grad(lambda q: dot_maxsim(q, d).sum()))(q))
    assert "f32[30,2,7]" in program
    assert "f32[30,12,7]" not in program and "f32[6,5,12,7]" not in program


def test_infonce_of_maxsim():
    loss = build_loss({"name": "infonce", "temperature": 1.0}, "maxsim")
    values = loss(QUERIES, DOCUMENTS[:2], Labels())
    assert float(values.mean()) == pytest.approx(0.754996, abs=1e-5)
    loss = build_loss({"name": "infonce", "temperature": 1.0}, "meanmaxsim")
    values = loss(QUERIES, DOCUMENTS[:2], Labels())
    assert float(values.mean()) == pytest.approx(0.723610, abs=1e-5)


def test_own_documents_are_those_of_all_scores():
    q, d = draw(queries=4, documents=12)
    scores = PairScores(gather_pairs(jnp.asarray(q), jnp.asarray(d)), "maxsim")
    every = np.asarray(scores.query_document).reshape(4, 4, 3)
    np.testing.assert_allclose(
        scores.own_documents, every[np.arange(4), np.arange(4)], rtol=1e-5
    )
    # The query always comes first
    positives = scores._score(scores.vectors.queries, scores.vectors.positives)
    np.testing.assert_allclose(scores.positive_query, positives.T, rtol=1e-5)


def test_widths_are_cut_before_vectors_are_normalized():
    q, d = draw(queries=4, documents=8)
    loss = build_loss({"name": "infonce"}, "maxsim")
    size_loss = SIZE_LOSSES["matryoshka"](loss, dims=(4, 16))
    value, _ = size_loss.loss(q, d, Labels(), jax.random.key(0))
    want = loss(q[..., :4], d[..., :4], Labels()) + loss(q, d, Labels())
    np.testing.assert_allclose(value, want, rtol=1e-6)


def test_depths_and_widths_of_token_vectors():
    q, d = draw(queries=4, documents=8)
    q, d = (np.stack([x / 2, x, 2 * x + 1], 1) for x in (q, d))  # [B, L+1, T, D]
    loss = build_loss({"name": "infonce"}, "maxsim")
    size_loss = SIZE_LOSSES["two_dimensional"](loss, pairs=((1, 4), (2, 16)))
    value, metrics = size_loss.loss(q, d, Labels(), jax.random.key(0))
    assert value.shape == (4,) and {"task/1x4", "task/2x16"} <= set(metrics)
    single = loss(q[:, 1, :, :4], d[:, 1, :, :4], Labels()).mean()
    assert float(metrics["task/1x4"]) == pytest.approx(float(single), rel=1e-5)


@pytest.mark.parametrize("name", ["angle", "flops", "embedding_mse", "stella"])
def test_losses_of_one_vector_refuse_several(name):
    with pytest.raises(ValueError, match="'maxsim', of several vectors per text, but"):
        build_loss({"name": name}, "maxsim")


def test_token_vectors_are_not_mixed():
    q, d = draw(queries=4, documents=12)
    loss = build_loss({"name": "infonce", "mixed_pairs": 1}, "maxsim")
    with pytest.raises(ValueError, match="mixtures are of one vector per text, which"):
        loss(jnp.asarray(q), jnp.asarray(d), Labels())
