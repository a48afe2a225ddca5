import gzip

import numpy as np
import pytest

from research.data.files import read_records
from research.eval.bm25 import bm25
from research.eval.needle_tasks import (
    NEEDLES_FILE,
    filler_words,
    needle,
    passkey,
    read_words,
)

# Of the published documents: words of filler; least, most and mean characters.
SIZES = {
    256: (167, 866, 890, 875.24),
    512: (359, 1776, 1800, 1785.19),
    1024: (743, 3598, 3622, 3607.18),
    2048: (1511, 7233, 7257, 7242.19),
    4096: (3047, 14509, 14533, 14518.16),
    8192: (6119, 29062, 29086, 29071.16),
    16384: (12263, 58165, 58189, 58174.16),
    32768: (24551, 116371, 116395, 116380.16),
}
CYCLE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again."
)


@pytest.mark.parametrize("length", SIZES)
def test_passkey_documents_have_the_published_sizes(length):
    words, shortest, longest, mean = SIZES[length]
    corpus, queries, _ = passkey(length)
    sizes = [len(text) for text in corpus.values()]
    assert filler_words(length) == words
    assert (min(sizes), max(sizes)) == (shortest, longest)
    assert np.mean(sizes) == pytest.approx(mean, abs=0.1)
    assert all(33 <= len(query) <= 45 for query in queries.values())


def test_a_passkey_document_is_the_filler_with_one_line_in_it():
    corpus, queries, qrels = passkey(512)
    assert (len(corpus), len(queries), len(qrels)) == (100, 50, 50)
    filler = " ".join((CYCLE.split() * 19)[:359])
    places, keys, people = [], set(), set()
    for text in corpus.values():
        before, line, after = text.split("\n")
        assert f"{before} {after}" == filler
        assert text.count("pass key") == 2
        name, key = line.split("'s pass key is ")[0], line.split()[5][:5]
        want = f"{name}'s pass key is {key}. Remember it. {key} is the pass key for"
        assert line == f"{want} {name}."
        assert key.isdigit() and len(key) == 5
        places.append(len(before.split()))
        keys.add(key)
        people.add(name)
    assert len(keys) == len(people) == 100
    assert 1 <= min(places) < 60 and 300 < max(places) <= 358


@pytest.mark.parametrize(
    "make", [passkey, lambda *args: needle(*args[:1], ["word"] * 359, *args[1:])]
)
def test_each_query_has_one_document_and_a_seed_its_own_set(make):
    corpus, queries, qrels = make(512)
    for query, grades in qrels.items():
        (document,) = grades
        subject = queries[query].removeprefix("what is the passkey for ").strip("?")
        if subject != queries[query].strip("?"):
            assert [i for i, text in corpus.items() if subject in text] == [document]
    assert len(set(queries.values())) == len(queries) == 50
    assert make(512) == make(512, 0)
    assert make(512, 1)[0] != corpus and make(512, 1)[1] != queries


def test_names_are_the_same_at_every_length_and_places_are_not():
    short, long = passkey(256), passkey(512)
    assert set(short[0]) == set(long[0])
    assert short[1] != long[1]


def test_every_question_is_answered_by_its_own_fact():
    records = [record for _, record in read_records(NEEDLES_FILE)]
    facts = [record["fact"] for record in records]
    questions = [record["question"] for record in records]
    assert len(set(facts)) == len(set(questions)) == 100
    assert all(fact.endswith(".") and 50 <= len(fact) <= 190 for fact in facts)
    assert all(question.endswith("?") for question in questions)
    _, rows = bm25(questions, facts, 1)
    assert rows[:, 0].tolist() == list(range(100))


def test_needle_documents_are_one_text_but_for_the_fact():
    words = [f"w{i}" for i in range(400)]
    corpus, _, qrels = needle(512, words)
    facts = [record["fact"] for _, record in read_records(NEEDLES_FILE)]
    for fact, text in zip(facts, corpus.values(), strict=True):
        before, line, after = text.split("\n")
        assert line == fact
        assert f"{before} {after}" == " ".join(words[:359])
    assert all(list(grades.values()) == [1] for grades in qrels.values())


def test_words_of_a_file_and_of_a_folder(tmp_path):
    (tmp_path / "b.txt").write_text("three\nfour  five\n")
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("one\n\ntwo\n")
    assert read_words(str(tmp_path), 4) == ["one", "two", "three", "four"]
    assert read_words(str(tmp_path / "b.txt"), 9) == ["three", "four", "five"]


def test_words_of_the_installed_packages(monkeypatch):
    from research.data.examples import Example
    from research.data.sources import Source

    def pydocs(*, split):
        texts = f"Docstring of {split}.", "Parse `code`.", "Not numpy.array"
        rows = [Example(text, ("code",)) for text in texts]
        return Source(examples=rows, negatives_per_query=0, weight=1.0, prompts={})

    monkeypatch.setattr("research.eval.needle_tasks.SOURCES", {"pydocs": pydocs})
    assert read_words("", 9) == [
        "Docstring",
        "of",
        "test.",
        "Docstring",
        "of",
        "train.",
    ]


def test_bad_input_is_named(tmp_path):
    for length in (-1, 0, 35):
        with pytest.raises(ValueError, match=f"length {length} is too short"):
            passkey(length)
    assert len(passkey(36)[0]) == 100
    with pytest.raises(ValueError, match="length 512 need a text of 359 words, not 1"):
        needle(512, ["word"])
    with pytest.raises(FileNotFoundError, match=r"has no \.txt"):
        read_words(str(tmp_path), 1)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_words(str(tmp_path / "missing"), 1)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"x\.txt cannot be read"):
        read_words(str(tmp_path), 1)
