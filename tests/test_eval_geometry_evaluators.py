import json

import compiled
import jax
import numpy as np
import pytest
from test_eval_bias_documents import TOKENIZER, corpus

from research.eval.evaluators import EVALS
from research.eval.geometry.evaluators import VECTOR_MEASURES
from research.eval.geometry.measures import alignment, mean_cosine
from research.eval.geometry.token_states import (
    inner_positions,
    iterate_states,
    sample_positions,
    sample_states,
)
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.models.config import bert
from research.text.chunk_rows import tokenize_documents
from research.text.tokenization import tokenize_texts

TEXTS = corpus(40, 7)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return str(path)


@pytest.fixture(scope="module")
def model():
    vocab = TOKENIZER.get_vocab_size()
    cfg = bert(vocab_size=vocab, width=16, depth=2, num_heads=2, mlp=16, max_len=24)
    params = compiled.init(jax.random.key(0), cfg)
    prompts = {"query": "", "document": ""}
    return EmbeddingModel(params, cfg, TOKENIZER, "mean", 24, prompts, True)


def embed(texts, role):
    """Vectors that depend on the text alone."""
    return np.stack(
        [np.random.default_rng(len(t) + ord(t[0])).normal(size=6) for t in texts]
    )


def test_geometry_measures_the_embeddings_of_a_corpus(file, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [("ab", "cd", 5.0), ("ef", "gh", 4.5), ("ij", "kl", 1.0)]
    names = ("sentence1", "sentence2", "score")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    pairs.write_text("\n".join(lines))
    scores = EVALS["geometry"](data=file, pairs=str(pairs))(embed)
    assert set(scores) == {*VECTOR_MEASURES, "alignment"}
    assert scores["mean_cosine"] == pytest.approx(mean_cosine(embed(TEXTS, "")))
    x, y = embed(["ab", "ef"], ""), embed(["cd", "gh"], "")
    assert scores["alignment"] == pytest.approx(alignment(x, y))
    assert "alignment" not in EVALS["geometry"](data=file)(embed)


def test_mistakes_of_geometry(file, tmp_path):
    with pytest.raises(ValueError, match="txt: 3 different texts are too few: 10"):
        EVALS["geometry"](data=file, texts=3)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\na\tb\t3\n")
    with pytest.raises(ValueError, match="has no pair with a score above 4.0"):
        EVALS["geometry"](data=file, pairs=str(pairs))


def test_token_states_are_those_that_are_pooled(model):
    token_ids = tokenize_texts(TOKENIZER, TEXTS, 24)
    pooled = Embedder(model, depths=(0, 1, 2), normalize=False)(TEXTS, "document")
    means = np.empty_like(pooled)
    for number, layers in iterate_states(model.params, model.config, token_ids):
        assert layers.shape == (3, len(token_ids[number]), 16)
        means[number] = layers.mean(1)
    np.testing.assert_allclose(means, pooled, atol=1e-5)


def test_clipping_sets_dimensions_to_zero_before_the_mean(model):
    plain = Embedder(model, normalize=False)(TEXTS, "document")
    clipped = Embedder(model, normalize=False, clip_dims=(9, 3))(TEXTS, "document")
    assert not clipped[:, [3, 9]].any()
    others = np.delete(np.arange(16), [3, 9])
    np.testing.assert_allclose(clipped[:, others], plain[:, others], atol=1e-6)
    with pytest.raises(ValueError, match=r"dimension 16 to clip is not in 0 ... 15"):
        Embedder(model, clip_dims=(16,))


def test_sampled_positions_are_in_order_and_without_special_tokens(model):
    token_ids = tokenize_texts(TOKENIZER, TEXTS, 24)
    inner = inner_positions(list(tokenize_documents(TOKENIZER, TEXTS, "", 24)))
    assert all(
        list(row) == list(range(1, len(ids) - 1))
        for row, ids in zip(inner, token_ids, strict=True)
    )
    # The prompt's words are not the text's.
    prompt = f"{TEXTS[0]} "
    prompted = list(tokenize_documents(TOKENIZER, TEXTS, prompt, 24))
    num_prompt = len(TOKENIZER.encode(prompt, add_special_tokens=False).ids)
    for row, ids in zip(inner_positions(prompted), inner, strict=True):
        assert list(row) == list(ids + num_prompt)
    sampled_rows = sample_positions(inner, 30, np.random.default_rng(0))
    assert sum(map(len, sampled_rows)) == 30 and len(sampled_rows) == len(TEXTS)
    for row, candidates in zip(sampled_rows, inner, strict=True):
        assert set(row) <= set(candidates) and list(row) == sorted(row)
    states = sample_states(model.params, model.config, token_ids, sampled_rows)
    every = dict(iterate_states(model.params, model.config, token_ids))
    expected = [every[i][:, row] for i, row in enumerate(sampled_rows)]
    np.testing.assert_array_equal(states, np.concatenate(expected, 1))


def test_token_geometry_measures_every_depth_and_masks(model, file):
    evaluator = EVALS["token_geometry"](data=file, tokens=100)
    parts = (model.params, model.config, model.tokenizer, 24)
    scores = evaluator.evaluate(*parts)
    by_depth = scores.pop("by_depth")
    assert all(len(values) == 3 for values in by_depth.values())
    assert scores == {name: values[-1] for name, values in by_depth.items()}
    # At the embedding layer, masks differ by their position alone.
    assert by_depth["mask_effective_rank"][0] < by_depth["real_effective_rank"][0]
    assert evaluator.evaluate(*parts) == {**scores, "by_depth": by_depth}
