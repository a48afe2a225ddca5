"""Rows of an ablation that differ in their transform of token vectors share them."""

import types

import numpy as np
import pytest

from research.analysis import ablation_embedders
from research.analysis.ablation import Ablation
from research.analysis.ablation_embedders import make_embedder
from research.types import MultiVectors

CALLS = []


class FakeEmbedder:
    """Texts of as many vectors as characters."""

    def __init__(self, model, **options):
        self.model, self.options = model, options

    def __call__(self, texts, role):
        CALLS.append((role, self.options))
        offsets = np.cumsum([0, *map(len, texts)])
        vectors = np.random.default_rng(0).normal(size=(offsets[-1], 4))
        return MultiVectors(vectors.astype("f4"), offsets)


class FakeModel(types.SimpleNamespace):
    def _replace(self, **changes):
        return FakeModel(**(vars(self) | changes))


@pytest.mark.parametrize("shares", [True, False])
def test_texts_are_embedded_once_for_all_transforms(monkeypatch, shares):
    monkeypatch.setattr(ablation_embedders, "Embedder", FakeEmbedder)
    CALLS.clear()
    config = types.SimpleNamespace(max_len=9)
    model = FakeModel(similarity="maxsim", max_length=9, config=config)
    rows = {
        "all": "x.py",
        "pooled": {"recipe": "x.py", "token_transform": "pool_tokens(2)"},
        "muvera": {"recipe": "x.py", "token_transform": "muvera(2, 1, 0)"},
    }
    columns = {"short": {"max_length": 4}, "long": {}}
    ablation = Ablation("", rows, columns, (0,), {}, shares_vectors=shares)
    cache, texts = {}, ["abcd", "abcdefg"]
    embedders = [make_embedder(ablation, model, row, "long", cache) for row in rows]
    embeddings = [embedder(texts, "document") for embedder in embedders]
    transforms = [options.get("token_transform") for _, options in CALLS]
    if not shares:
        assert transforms == [None, "pool_tokens(2)", "muvera(2, 1, 0)"]
        return
    assert transforms == [None]
    assert embeddings[0].offsets.tolist() == [0, 4, 11]
    assert embeddings[1].offsets.tolist() == [0, 2, 6]
    assert embeddings[2].shape == (2, 2 * 2 * 4)
    assert [e.model.similarity for e in embedders] == ["maxsim", "maxsim", "dot"]
    # Texts that are cut otherwise are embedded again
    make_embedder(ablation, model, "all", "short", cache)(texts, "document")
    assert len(CALLS) == 2
