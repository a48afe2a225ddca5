from dataclasses import replace

import jax
import numpy as np
import pytest

from research import types
from research.eval.tasks.retrieval import ranking
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.inference.tokenize import TokenizedTexts, tokenize_in_context
from research.models import encoder
from research.models.config import EncoderConfig
from research.models.pooling.projection import Dense
from research.text.chunking import parse_chunking, split_texts
from research.text.tokenization import train_tokenizer
from research.transforms.normalize import l2_normalize_rows
from research.types import MultiVectors

SENTENCE = "the quick brown fox jumps over a lazy dog and runs away"
WORDS = SENTENCE.split()
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, n)) for n in (1, 9, 30, 18)]
CONFIG = EncoderConfig(
    vocab_size=128, width=16, depth=2, num_heads=2, mlp=32, max_len=40
)


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer(WORDS * 9, 128)  # each word becomes a token
    init = jax.jit(encoder.init, static_argnames="cfg")
    return init(jax.random.key(1), cfg=CONFIG), CONFIG, tokenizer


def embedder(model, chunk=None, prompts=None, dense=(), **options):
    plain = EmbeddingModel(*model, "mean", 40, prompts or {}, True, dense)
    if chunk is not None:
        options["chunk"] = parse_chunking(chunk)
    return Embedder(plain, **options)


def near(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_chunk_over_the_whole_text_is_mean_pooling(model):
    found = embedder(model, "late(99)")(TEXTS, "document")
    near(found.vectors, embedder(model)(TEXTS, "document"))
    np.testing.assert_array_equal(found.text_numbers, [0, 1, 2, 3])
    np.testing.assert_array_equal(found.end, [len(text) for text in TEXTS])


@pytest.mark.parametrize("chunk", ["late(4)", "late(4, window=40, overlap=5)"])
def test_chunks_weighted_by_their_tokens_are_the_whole_text(model, chunk):
    found = embedder(model, chunk, normalize=False)(TEXTS, "document")
    splits = split_texts(model[2], TEXTS, parse_chunking("late(4)"), encoder_max_len=40)
    tokens = np.concatenate([np.bincount(s.rows[0].span_ids)[1:] for s in splits])
    whole = embedder(model, normalize=False)(TEXTS, "document")
    for number, vector in enumerate(whole):
        own = found.text_numbers == number
        near(np.average(found.vectors[own], axis=0, weights=tokens[own]), vector)


def test_long_late_chunks_are_means_over_windows(model):
    params, cfg, tokenizer = model
    found = embedder(model, "late(6, window=12, overlap=4)", normalize=False)
    (text,), ids = TEXTS[2:3], np.array(tokenizer.encode(TEXTS[2]).ids)
    states, forward = [], jax.jit(encoder.forward, static_argnames="cfg")
    for start in range(0, len(ids) - 4, 8):
        row = ids[None, start : start + 12].astype(np.int32)
        tokens = types.Tokens(row, np.ones_like(row), np.ones_like(row, bool))
        state = forward(params, tokens, cfg=cfg).hidden_states[0]
        states.append(np.asarray(state)[4 if start else 0 :])
    states = np.concatenate(states)
    assert len(states) == len(ids)
    owner = np.pad((np.arange(len(ids) - 2)) // 6, 1, mode="edge")
    want = [states[owner == n].mean(0) for n in range(owner[-1] + 1)]
    near(found([text], "document").vectors, want)


def test_landmarks_of_a_causal_encoder(model):
    params, cfg, tokenizer = model
    causal = params, replace(cfg, causal=True), tokenizer
    one = embedder(causal, "landmark(99)")(TEXTS, "document")
    near(one.vectors, embedder(causal, pool="last")(TEXTS, "document"))
    landmarks = embedder(causal, "landmark(5)")
    text = TEXTS[3]
    short = landmarks([text[: text.index(" ", 50)]], "document").vectors
    long = landmarks([text], "document").vectors
    assert len(long) > len(short) > 2
    near(short[:-1], long[: len(short) - 1])  # the last one is of [SEP]
    seeing = embedder(model, "landmark(5)")([text], "document").vectors
    assert np.abs(seeing[:2] - long[:2]).max() > 1e-4


def test_naive_chunks_are_the_pieces_on_their_own(model):
    prompts = {"query": "fox ", "document": "the dog "}
    options = {"prompts": prompts, "pool": "cls", "dim": 8, "depth": 1}
    found = embedder(model, "naive(3)", **options)(TEXTS, "document")
    places = zip(found.text_numbers, found.start, found.end, strict=True)
    pieces = [TEXTS[n][start:end] for n, start, end in places]
    plain = embedder(model, **options)
    near(found.vectors, plain(pieces, "document"))
    near(embedder(model, "naive(3)", **options)(TEXTS, "query"), plain(TEXTS, "query"))


def test_parallel_windows_are_averaged_then_normalised(model):
    found = embedder(model, "pcw(12)")(TEXTS, "document")
    words = [text.split() for text in TEXTS]
    raw = embedder(model, normalize=False)
    for vector, text in zip(found, words, strict=True):
        last = max(0, len(text) - 10)
        starts = [*range(0, last, 10), last]
        windows = [" ".join(text[start : start + 10]) for start in starts]
        near(
            vector,
            l2_normalize_rows(raw(windows, "document").mean(0, keepdims=True))[0],
        )
    near(
        embedder(model, "pcw(40)")(TEXTS, "document"),
        embedder(model)(TEXTS, "document"),
    )


def test_batches_and_devices_change_nothing(model):
    want = embedder(model, "late(3)")(TEXTS, "document")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for options in ({"batch_tokens": 16}, {"mesh": mesh, "batch_tokens": 32}):
        found = embedder(model, "late(3)", **options)(TEXTS, "document")
        near(found.vectors, want.vectors)
        np.testing.assert_array_equal(found.start, want.start)


def test_evaluators_rank_documents_by_their_best_chunk(model):
    corpus = {str(n): text for n, text in enumerate(TEXTS)}
    piece = " ".join(TEXTS[2].split()[8:12])
    scores = ranking(corpus, {"q": piece}, {"q": {"2": 1}})
    assert scores(embedder(model, "naive(4)"))["mrr@10"] == 100

    def letters(texts, role):
        if role == "query":
            return np.eye(2, dtype=np.float32)
        return MultiVectors(np.eye(2, dtype="f4")[[0, 1, 0, 1]], np.array([0, 2, 3, 4]))

    qrels = {"p": {"a": 1, "b": 1}, "q": {"a": 1, "c": 1}}
    found = ranking(dict.fromkeys("abc", "x"), {"p": "x", "q": "x"}, qrels)(letters)
    assert found["main_score"] == pytest.approx(100)


@pytest.mark.parametrize(
    "chunk,options,message",
    [
        ("pcw(41)", {}, "reads 41 tokens at a time; this encoder reads 1 ... 40"),
        ("late(4, window=48, overlap=4)", {}, "reads 48 tokens"),
        ("late(4)", {"max_length": 41}, "max_length 41 is not in 1 ... 40"),
        ("late(4)", {"dim": 17}, "dim 17 is not in 1 ... 16"),
        ("naive(4)", {"pool": "best"}, "unknown pooling 'best'"),
    ],
)
def test_what_the_model_does_not_reach(model, chunk, options, message):
    with pytest.raises(ValueError, match=message):
        embedder(model, chunk, **options)


def test_no_texts(model):
    with pytest.raises(ValueError, match="no texts"):
        embedder(model, "late(4)")([], "document")


def test_dense_layers_come_after_the_mean_over_windows(model):
    kernel = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    options = {"dense": (Dense(kernel, activation="tanh"),), "normalize": False}
    for chunk in ("late(6, window=12, overlap=4)", "naive(6)", "landmark(6)"):
        plain = embedder(model, chunk, normalize=False)(TEXTS, "document").vectors
        found = embedder(model, chunk, dim=5, **options)(TEXTS, "document").vectors
        near(found, np.tanh(plain @ kernel)[:, :5])
    whole = embedder(model, **options)(TEXTS, "document")
    near(embedder(model, "pcw(40)", **options)(TEXTS, "document"), whole)


def test_a_passage_in_its_context_is_a_late_chunk(model):
    embed = embedder(model, prompts={"document": "a dog"})
    chunks = embedder(model, "late(4)", embed.model.prompts)(TEXTS[2:3], "document")
    text, spans = TEXTS[2], zip(chunks.start, chunks.end, strict=True)
    passages = [(text[a:b], (text[:a], text[b:])) for a, b in spans]
    rows = tokenize_in_context(
        model[2], passages, prompt="a dog", max_length=40, label="text {}".format
    )
    found = embed.encode(TokenizedTexts("document", [rows], str))
    near(found, chunks.vectors)
    with pytest.raises(ValueError, match="text 0: '' has no tokens in its context"):
        tokenize_in_context(
            *(model[2], [("", ("a dog", "runs"))]),
            **{"prompt": "", "max_length": 40, "label": "text {}".format},
        )
