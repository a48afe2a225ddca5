import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from research.analysis.diagnostics.sentence_importance import (
    list_sentence_importance,
    measure_sentence_importance,
    plot_sentence_importance,
    regress_document,
    report_sentence_importance,
    split_groups,
    split_sentences,
)
from research.eval.bias.documents import make_word_tokenizer


def vector(sentence):
    return np.random.default_rng(zlib.crc32(sentence.encode())).normal(size=64)


def weighted(weight):
    """An embed function: the sum of the sentences' vectors by weight(place, number)."""

    def embed(texts, role):
        parts = [split_sentences(text) for text in texts]
        return np.stack(
            [
                sum(weight(i, len(part)) * vector(s) for i, s in enumerate(part))
                for part in parts
            ]
        )

    return embed


def documents(count=30):
    rng = np.random.default_rng(0)
    return [
        [f"Sentence {n} {i}." for i in range(rng.integers(5, 15))] for n in range(count)
    ]


def test_importances_are_those_of_the_paper():
    r = np.random.default_rng(5)
    a = r.normal(size=(16, 4))
    y = a @ [0.6, 0.3, 0.2, 0.1] + 0.1 * r.normal(size=16)
    fit = regress_document(a.T, y)
    expected = [0.825942, 0.443200, 0.268833, 0.221636]
    np.testing.assert_allclose(fit.importances, expected, atol=1e-6)
    assert fit.r2 == pytest.approx(0.993922, abs=1e-6) and fit.rank == 4
    # The order of the sentences is that of the importances.
    order = [2, 0, 3, 1]
    shuffled = regress_document(a.T[order], y)
    np.testing.assert_allclose(shuffled.importances, fit.importances[order])


def test_a_document_that_is_its_mean_or_its_first_sentence():
    x = np.random.default_rng(0).normal(size=(4, 16))
    equal = regress_document(x, x.mean(0))
    np.testing.assert_allclose(equal.importances, [0.5] * 4)
    assert equal.r2 == pytest.approx(1)
    first = regress_document(x, x[0])
    np.testing.assert_allclose(first.importances, [1, 0, 0, 0], atol=1e-12)
    assert regress_document(x[[0, 0, 1]], x[0]).rank == 2
    with pytest.raises(ValueError, match="4 sentences has no unique importances in 3"):
        regress_document(x[:, :3], x[0, :3])


def test_a_bias_of_the_model_stays_when_sentences_are_shuffled():
    falling = measure_sentence_importance(
        weighted(lambda place, number: 1 - place / number), documents()
    )
    even = measure_sentence_importance(weighted(lambda *_: 1.0), documents())
    for variant in ("as_written", "shuffled"):
        assert falling[variant]["slope"] < -0.3 and falling[variant]["p"] < 1e-9
        assert falling[variant]["r2"] == pytest.approx(1)
        means = falling[variant]["by_position"]
        assert means[0] > means[5] > means[9]
        assert abs(even[variant]["slope"]) < 0.05 and even[variant]["collinear"] == 0


def test_sentences_and_groups_of_documents():
    text = 'One. "Two!" ... Three? 4\n\nFive'
    assert split_sentences(text) == ["One.", '"Two!"', "Three?", "4", "Five"]
    paragraphs = [f"A {i}. B {i}. C {i}." for i in range(200)]
    groups = split_groups(paragraphs, 12)
    assert list(groups)[:3] == ["5-14", "15-24", "25-34"]
    for name, members in groups.items():
        low, high = map(int, name.split("-"))
        assert len(members) <= 12
        assert all(low <= len(member) <= high for member in members)
        sentences = [sentence for member in members for sentence in member]
        assert len(set(sentences)) == len(sentences)
    with pytest.raises(ValueError, match="fewer than 10 documents of 5 sentences"):
        split_groups(paragraphs[:9], 12)


def test_the_table_and_the_picture_show_the_slopes(tmp_path, monkeypatch):
    group = measure_sentence_importance(weighted(lambda *_: 1.0), documents())
    record = {"groups": {"5-14": {"too_long": 0.1, **group}}}
    _, written, shuffled = list_sentence_importance(record)
    assert written[:3] == ["5-14", "30", "as written"] and written[-1] == "10 %"
    assert f"{group['shuffled']['slope']:+.3f}" in shuffled[3]
    pictures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda picture, *_, **__: pictures.append(picture)
    )
    plot_sentence_importance(record, "a title", tmp_path / "picture.png")
    points, line = pictures[0].axes[1].lines
    np.testing.assert_allclose(points.get_ydata(), group["shuffled"]["by_position"])
    slope = np.diff(line.get_ydata())[0]
    assert slope == pytest.approx(group["shuffled"]["slope"])


def test_documents_with_more_sentences_than_dimensions_are_left_out():
    class Embedder:
        width = 16

        def __call__(self, texts, role):
            return weighted(lambda *_: 1.0)(texts, role)[:, : self.width]

    inputs = SimpleNamespace(
        model=SimpleNamespace(tokenizer=make_word_tokenizer()),
        seed=0,
        list_texts=lambda: [f"A {i}. B {i}. C {i}." for i in range(200)],
        document_room=lambda: 1_000,
        make_embedder=Embedder,
    )
    record = report_sentence_importance(inputs, documents=20)
    assert list(record["groups"]) == ["5-14"]
    Embedder.width = 4
    with pytest.raises(ValueError, match="fewer sentences than its 4 dimensions"):
        report_sentence_importance(inputs, documents=20)
