import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_eval_bias_documents import TOKENIZER, WORDS, corpus

from research.analysis.diagnostics.length_collapse import choose_lengths
from research.analysis.diagnostics.reports import REPORTS
from research.eval.bias.documents import make_documents, truncate_document
from research.eval.bias.length_collapse import measure_length_collapse
from research.eval.bias.positional_bias import measure_positional_bias

VECTORS = np.random.default_rng(3).standard_normal((len(WORDS), 16))


def words(string):
    return [WORDS.index(word) for word in string.split()]


def collapsing(texts, role):
    """[N, 2, N + 1]: text i is e_i, and at depth 1 has cosine 1 - 1 / words to all."""
    assert role == "document"
    common = 1 - 1 / np.array([len(text.split()) for text in texts])
    own = np.eye(len(texts))
    deep = np.column_stack([np.sqrt(common), own * np.sqrt(1 - common)[:, None]])
    return np.stack([np.column_stack([0 * common, own]), deep], 1)


def weighted(weight):
    """An embed function: the sum of the words' vectors by weight(place, number)."""

    def embed(texts, role):
        rows = [words(text) for text in texts]
        return np.stack(
            [
                sum(weight(i, len(row)) * VECTORS[w] for i, w in enumerate(row))
                for row in rows
            ]
        )

    return embed


def made(length, count):
    found = make_documents(corpus(400, 7), TOKENIZER, length=length, count=count)
    return [truncate_document(document, length) for document in found]


def bias(embed):
    return measure_positional_bias(embed, made(40, 24)[::2], made(40, 24)[1::2])


def test_lengths_to_compare():
    assert choose_lengths(510) == [8, 16, 32, 64, 128, 256, 510]
    assert choose_lengths(512) == [8, 16, 32, 64, 128, 256, 512]
    assert choose_lengths(30) == [8, 16, 30]
    with pytest.raises(ValueError, match="9 tokens are too short"):
        choose_lengths(9)


def test_a_known_collapse():
    embeds = {"one": collapsing, "two": lambda texts, role: -collapsing(texts, role)}
    lengths = [4, 10, 20]
    record = measure_length_collapse(embeds, made(20, 12), lengths)
    expected = [1 - 1 / length for length in lengths]
    for found in record["models"].values():
        for name in ("mean", "p10", "p90"):
            np.testing.assert_allclose(found[name], expected, atol=1e-9)
        np.testing.assert_allclose(found["layers"], [[0] * 3, expected], atol=1e-9)
    assert record["texts_per_document"] == [1, 2, 3]


def test_a_bag_of_words_has_no_bias():
    record = bias(weighted(lambda place, number: 1))
    assert record["documents"] == 12 and record["tokens"] == 40
    for variant in ("as_written", "rotated"):
        found = record[variant]
        for cosines in found["insert"]["cosine"].values():
            np.testing.assert_allclose(cosines, found["insert"]["cosine"]["start"])
            assert np.all(np.diff(cosines) < 0)  # larger edits change more
        assert found["insert"]["start_over_end"] == pytest.approx(1)
        assert found["remove"]["start_over_end"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("variant", ["as_written", "rotated"])
@pytest.mark.parametrize("kind", ["insert", "remove"])
def test_a_model_that_reads_one_end_only(kind, variant):
    first = bias(weighted(lambda place, number: float(place == 0)))[variant][kind]
    last = bias(weighted(lambda place, number: float(place == number - 1)))
    for place in ("middle", "end"):
        np.testing.assert_allclose(first["cosine"][place], [1] * 4)
        assert max(first["standard_error"][place]) < 1e-9
    assert max(first["cosine"]["start"]) < 0.9
    assert first["start_over_end"] > 1e6
    assert last[variant][kind]["start_over_end"] == pytest.approx(0, abs=1e-6)


def test_rotation_tells_the_documents_bias_from_the_models():
    """Documents open with the words that matter; the model reads all places alike."""
    heavy = [" ".join(["ba"] * 8 + [w] * 32) for w in WORDS[1:]]
    embed = weighted(lambda place, number: 1)
    made = make_documents(heavy, TOKENIZER, length=40, count=20)
    found = measure_positional_bias(embed, made, made, sizes=(0.05, 0.1, 0.2, 0.4))
    assert found["as_written"]["remove"]["start_over_end"] > 2
    assert found["rotated"]["remove"]["start_over_end"] == pytest.approx(1, abs=0.6)


def test_pictures_and_records(tmp_path, monkeypatch):
    collapse = measure_length_collapse({"x": collapsing}, made(20, 12), [8, 20])
    moved = bias(weighted(lambda place, number: 1 / (1 + place)))
    assert moved["rotated"]["insert"]["start_over_end"] > 1.2
    pictures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda picture, *_, **__: pictures.append(picture)
    )
    for name, record in (
        ("length_collapse", collapse),
        ("positional_bias", moved),
    ):
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        REPORTS[name].plot(record, "a title", tmp_path / f"{name}.png")
        header, *rows = REPORTS[name].make_rows(record)
        assert rows and {len(row) for row in rows} == {len(header)}
        assert pictures[-1].get_suptitle() == "a title"
    outputs, depths = pictures[0].axes[:2]
    np.testing.assert_allclose(
        outputs.lines[0].get_ydata(), collapse["models"]["x"]["mean"]
    )
    assert depths.get_title() == "Every depth of x"
    edited = pictures[1].axes[0].containers[0].lines[0]
    cosines = moved["as_written"]["insert"]["cosine"]["start"]
    np.testing.assert_allclose(list(edited.get_ydata()), cosines)


def test_too_few_texts():
    few = made(20, 9)
    with pytest.raises(ValueError, match="9 documents are too few: 10 or more"):
        measure_length_collapse({"x": collapsing}, few, [8, 20])
    with pytest.raises(ValueError, match="9 documents are too few"):
        measure_positional_bias(weighted(lambda *_: 1), few, few)
