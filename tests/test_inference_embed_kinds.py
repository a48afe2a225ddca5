"""Embedders of token vectors: tokens, batches, sizes, attention of longer queries."""

import dataclasses

import jax
import numpy as np
import pytest

from research.inference.embed_kinds import join_embeddings
from research.inference.embedder import Embedder
from research.inference.similarity import similarity
from research.models.encoder import forward
from research.models.pooling.registry import add_pooling_params, parse_pooling
from research.text.multi_vector_prompts import colbert
from research.text.templates import tokenize_with_prompt
from research.transforms.token_rows import split_rows
from research.types import MultiVectors, Tokens
from tests.tiny_models import TEXTS, make_model

PROMPT = colbert(
    query_marker="", document_marker="", query_length=12, document_length=24
)


@pytest.fixture(scope="module")
def model():
    kernel = np.random.default_rng(3).normal(size=(16, 8)).astype("f4")
    base = make_model()
    return base._replace(
        params={**base.params, "pooling": {"kernel": kernel}},
        pool="colbert(dim=8)",
        prompt=PROMPT,
        similarity="maxsim",
    )


def near(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5)


def embed_one_by_one(model, texts, role):
    """The definition: forward, project, leave tokens out, normalize."""
    (rows,) = tokenize_with_prompt(PROMPT, model.tokenizer, texts, 30, role)
    mask_id = model.tokenizer.token_to_id("[MASK]")
    cfg = dataclasses.replace(model.config, unattended_id=mask_id)
    vectors = []
    for ids, mask in zip(rows.token_ids, rows.pooling_mask, strict=True):
        ones = np.ones((1, len(ids)), np.int32)
        tokens = Tokens(ids[None], ones, ones > 0)
        x = np.asarray(forward(model.params, tokens, cfg).hidden_states[0])
        x = x[mask] @ model.params["pooling"]["kernel"]
        vectors.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return vectors


@pytest.mark.parametrize("role", ["query", "document"])
def test_vectors_are_those_of_the_scored_tokens(model, role):
    found = Embedder(model)(TEXTS, role)
    want = embed_one_by_one(model, TEXTS, role)
    assert np.diff(found.offsets).tolist() == [len(x) for x in want]
    near(found.vectors, np.concatenate(want))
    if role == "query":
        assert set(np.diff(found.offsets)) == {12}


def test_batches_and_devices_change_nothing(model):
    want = Embedder(model)(TEXTS, "document")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for options in ({"batch_tokens": 16}, {"mesh": mesh, "batch_tokens": 32}):
        found = Embedder(model, **options)(TEXTS, "document")
        near(found.vectors, want.vectors)
        np.testing.assert_array_equal(found.offsets, want.offsets)


def test_no_token_attends_to_the_masks_of_a_query(model):
    shorter = PROMPT._replace(
        late_interaction=PROMPT.late_interaction._replace(query_length=10)
    )
    words = ["roots", "the"]  # of fewer tokens than a query
    long = Embedder(model)(words, "query")
    short = Embedder(model, prompt=shorter)(words, "query")
    texts = [range(10), range(12, 22)]
    near(short.vectors, np.concatenate([long.vectors[i] for i in texts]))
    # Where they are attended to, they change the vectors
    late = PROMPT.late_interaction._replace(attends=True)
    attending = Embedder(model, prompt=PROMPT._replace(late_interaction=late))
    assert np.abs(attending(words, "query").vectors - long.vectors).max() > 1e-3


def test_widths_and_depths_are_cut(model):
    unnormalized = Embedder(model, normalize=False)(TEXTS, "document")
    cut = Embedder(model, dim=4)(TEXTS, "document")
    x = unnormalized.vectors[:, :4]
    near(cut.vectors, x / np.linalg.norm(x, axis=1, keepdims=True))
    every = Embedder(model, depths=(1, 3), normalize=False)(TEXTS, "document")
    near(every.vectors[:, 1], unnormalized.vectors)
    first = Embedder(model, depth=1, normalize=False)(TEXTS, "document")
    near(every.vectors[:, 0], first.vectors)


def test_a_dense_model_gives_its_token_states():
    model = make_model()
    embedder = Embedder(model, pool="colbert(dim=0)")
    assert embedder.kind == "multi_vector" and embedder.model.similarity == "maxsim"
    found = embedder(TEXTS, "document")
    assert found.vectors.shape[1] == 16
    scores = similarity(embedder(TEXTS, "query"), found, "meanmaxsim")
    near(np.diagonal(scores), 1)  # a text is its own best document


def test_rows_of_terms_are_neither_cut_nor_scaled(key):
    base, pool = make_model(), "slim(top=5)"
    params = add_pooling_params(key, base.params, base.config, parse_pooling(pool))
    model = base._replace(params=params, pool=pool, normalize=True)
    embedder = Embedder(model)
    assert (embedder.kind, embedder.model.similarity) == ("slim", "slim")
    found = embedder(TEXTS, "document")
    assert found.vectors.shape[1] == embedder.width == 20
    # A token has at least the product with itself: the squares of its weights
    _, _, weights = split_rows(found.vectors, "slim")
    squares = np.add.reduceat(np.square(weights).sum(1), found.offsets[:-1])
    scores = np.diagonal(similarity(found, found, "slim"))
    assert (scores >= squares - 1e-5).all() and squares.min() > 0
    small = Embedder(model, batch_tokens=16)(TEXTS, "document")
    near(small.vectors, found.vectors)
    with pytest.raises(ValueError, match=r"dim 4 does not go with the pooling slim\("):
        Embedder(model, dim=4)


def test_what_does_not_go_with_token_vectors(model):
    from research.text.chunking import parse_chunking

    chunk = parse_chunking("late(4)")
    with pytest.raises(ValueError, match="does not go with the pooling colbert"):
        Embedder(model._replace(prompt=None), chunk=chunk)
    two = PROMPT._replace(
        templates={role: group * 2 for role, group in PROMPT.templates.items()}
    )
    with pytest.raises(ValueError, match="use a prompt of one template"):
        Embedder(model, prompt=two)


def test_tokens_are_pooled_and_encoded(model):
    plain, whole = Embedder(model), (TEXTS, "document")
    half = Embedder(model, token_transform="pool_tokens(2)")
    counts = [np.diff(e(*whole).offsets) for e in (plain, half)]
    np.testing.assert_array_equal(counts[1], 1 + np.maximum((counts[0] - 1) // 2, 1))
    near(half(TEXTS, "query").vectors, plain(TEXTS, "query").vectors)
    one = Embedder(model, token_transform="muvera(repetitions=2, planes=1)")
    assert (one.kind, one.model.similarity) == ("dense", "dot")
    assert one(*whole).shape == (4, one.width) == (4, 2 * 2 * 16)


def test_token_transforms_that_cannot_be(model):
    with pytest.raises(ValueError, match="is for a vector per token, but those of"):
        Embedder(make_model(), token_transform="muvera()")
    with pytest.raises(ValueError, match="muvera makes one vector, so that it comes"):
        Embedder(model, token_transform="muvera() | pool_tokens(2)")
    with pytest.raises(ValueError, match="several depths do not go with pool_tokens"):
        Embedder(model, token_transform="pool_tokens(2)", depths=(1, 2))


def test_joined_vectors_have_the_sum_of_the_similarities():
    rng = np.random.default_rng(0)
    q, d = ([rng.normal(size=(n, w)) for w in (3, 5)] for n in (4, 6))
    joined = [join_embeddings(parts, normalize=False) for parts in (q, d)]
    near(joined[0] @ joined[1].T, sum(a @ b.T for a, b in zip(q, d, strict=True)))
    # Chunks, as many in each; cosines are averaged
    offsets = np.array([0, 2, 3, 6])
    chunks = [MultiVectors(x.astype("f4"), offsets) for x in d]
    joined = [join_embeddings(parts, normalize=True) for parts in (q, chunks)]
    want = [similarity(a.astype("f4"), b, "cosine") for a, b in zip(d, d, strict=True)]
    got = similarity(join_embeddings(d, normalize=True), joined[1].vectors, "cosine")
    near(got, np.mean(want, axis=0))
    assert joined[1].offsets is offsets and joined[1].vectors.shape == (6, 8)
    chunks[1] = chunks[1]._replace(offsets=np.array([0, 2, 4, 6]))
    with pytest.raises(ValueError, match="text 1 has 1 chunks in one model and 2 in"):
        join_embeddings(chunks, normalize=True)
