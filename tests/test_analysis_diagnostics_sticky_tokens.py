import re
import zlib

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_eval_bias_documents import TOKENIZER

from research.analysis.diagnostics.insertions import (
    insert_copies,
    select_pairs,
    spread_pairs,
    sticky_scores,
)
from research.analysis.diagnostics.sticky_tokens import (
    list_sticky_tokens,
    measure_sticky_tokens,
    plot_sticky_tokens,
)
from research.analysis.diagnostics.vocabulary import list_reachable_tokens

COMMON = np.eye(32)[0]
SENTENCES = [f"this is sentence {n}" for n in range(40)]
VOCABULARY = [f"w{n}" for n in range(50)]


def embed(texts, role):
    """A constant vector with "stick"; "noop" has no effect, others a small one."""
    vectors = []
    for text in texts:
        text = " ".join(text.replace("noop", " ").split())
        sentence = " ".join(re.sub(r"w\d+", " ", text).split())
        vector = COMMON + draw(sentence) / 8 + draw(text) / 100
        vectors.append(COMMON if "stick" in text else vector)
    return np.array(vectors)


def draw(text):
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=32)


def test_the_score_of_known_distances():
    distances = np.array([0.8, 0.7, 0.75, 0.6])
    assert sticky_scores(distances, 0.5) == pytest.approx(4.545455, abs=1e-6)
    assert sticky_scores(np.full(9, 0.4), 0.0) == 0


def test_a_planted_token_is_found_and_one_without_effect_is_not():
    record = measure_sticky_tokens(
        embed,
        SENTENCES,
        VOCABULARY,
        [*VOCABULARY, "stick"],
        ["noop"],
        check_pairs=20,
    )
    rows = {row["token"]: row for row in record["checked"]}
    assert rows["stick"]["p"] > 0.9 and record["strong"] >= 1
    assert rows["stick"]["label"] == "strong"
    assert rows["noop"]["p"] == 0 and rows["noop"]["label"] == "rejected"
    assert rows["stick"]["score"] == record["scores"]["100"]
    assert record["candidates"] == 51 and len(rows) == 3  # 2 % of 51, and the word
    assert ["'stick'", "strong"] in [row[::3] for row in list_sticky_tokens(record)]


def test_the_picture_shows_tokens_with_signs(tmp_path, monkeypatch):
    rows = [
        {"token": token, "score": 1.0, "p": p, "label": "strong"}
        for token, p in (("$x_1$", 0.9), ("##ing", 0.7))
    ]
    record = {"checked": rows, "strong": 2, "candidates": 100}
    pictures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda picture, *_, **__: pictures.append(picture)
    )
    plot_sticky_tokens(record, "a title", tmp_path / "picture.png")
    (axes,) = pictures[0].axes
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.7]
    assert [x.get_text() for x in axes.get_yticklabels()] == [r"\$x_1\$", "##ing"]


def test_pairs_are_spread_over_the_similarities():
    x = np.random.default_rng(0).normal(size=(30, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = spread_pairs(x @ x.T, 20)
    assert len({pair[:2] for pair in pairs}) == 20
    values = np.array([cosine for _, _, cosine in pairs])
    targets = np.linspace(values[0], values[-1], 20)
    np.testing.assert_allclose(values, targets, atol=0.05)
    assert all(cosine == pytest.approx(x[i] @ x[j]) for i, j, cosine in pairs)
    assert len(spread_pairs(x[:4] @ x[:4].T, 20)) == 6
    chosen = [x[i] @ x[j] for i, j in select_pairs(pairs, 0.5, 5)]
    assert chosen[0] == values[0] and np.all(np.diff(chosen) > 0) and chosen[-1] < 0.5
    with pytest.raises(ValueError, match="no two sentences have a cosine below -1.000"):
        select_pairs(pairs, -1.0, 5)


def test_places_of_insertion():
    assert insert_copies("a b", "t", "prefix", 0)[1] == "tta b"
    assert insert_copies("a b", "t", "suffix", 0)[2] == "a bttt"
    texts = insert_copies("a b", "t", "insert", 0)
    assert [text.split().count("t") for text in texts] == list(range(1, 9))
    for text in texts:
        assert [word for word in text.split() if word != "t"] == ["a", "b"]
    assert texts == insert_copies("a b", "t", "insert", 0)


def test_reachable_tokens_are_tokenized_as_themselves():
    tokens = list_reachable_tokens(TOKENIZER)
    assert 20 < len(tokens) <= TOKENIZER.get_vocab_size()
    for token in tokens:
        ids = TOKENIZER.encode(token.text, add_special_tokens=False).ids
        assert ids == [token.token_id] and token.text.strip()
