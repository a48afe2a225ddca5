import numpy as np
import pytest

from research.eval.bias.documents import (
    Document,
    insert_text,
    join_pieces,
    make_documents,
    make_word_tokenizer,
    remove_tokens,
    rotate_document,
    truncate_document,
)
from research.text.tokenization import train_tokenizer

WORDS = [f"{a}{b}" for a in "bcdfg" for b in "aeiou"]
TOKENIZER = train_tokenizer([*WORDS, "()"], 200)  # every word is a token


def corpus(count, words, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, words)) for _ in range(count)]


def tokens(string):
    return len(TOKENIZER.encode(string, add_special_tokens=False).ids)


def document(string):
    (found,) = make_documents([string], TOKENIZER, length=tokens(string), count=1)
    return found


def test_short_texts_are_joined_and_long_ones_cut():
    texts = corpus(40, 6)
    found = make_documents(texts, TOKENIZER, length=20, count=5)
    assert [tokens(join_pieces(truncate_document(one, 20))) for one in found] == [
        20
    ] * 5
    assert [one.source[-1] for one in found] == [3] * 5
    parts = [part for one in found for part in join_pieces(one).split("\n")]
    assert len(set(parts)) == len(parts) and set(parts) <= set(texts)
    (long,) = make_documents([*texts, *corpus(1, 300)], TOKENIZER, length=20, count=1)
    assert (
        tokens(join_pieces(truncate_document(long, 20))) == 20 and long.source[-1] == 0
    )


def test_the_seed_decides():
    texts = corpus(40, 6)
    first, again, other = (
        [
            join_pieces(d)
            for d in make_documents(texts, TOKENIZER, length=20, count=5, seed=seed)
        ]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_piece_is_a_word_with_what_follows():
    found = document("ba  (ce)\n\ndibo du")
    assert found.pieces == ("ba  ", "(", "ce", ")\n\n", "dibo ", "du\n")
    assert found.sizes.tolist() == [1, 1, 1, 1, tokens("dibo"), 1]
    assert join_pieces(found) == "ba  (ce)\n\ndibo du"
    assert join_pieces(truncate_document(found, 3)) == "ba  (ce"
    assert join_pieces(truncate_document(found, 0)) == "ba"


def test_a_rotation_keeps_every_word():
    found = rotate_document(document("ba be bi bo"), 0.5)
    assert found.pieces == ("bi ", "bo\n", "ba ", "be ")
    assert found.sizes.tolist() == [1] * 4


def test_insertions_and_removals():
    found = document("ba be bi bo bu ca ce ci co cu")
    assert [insert_text(found, "du", place) for place in (0, 0.5, 1)] == [
        "du ba be bi bo bu ca ce ci co cu",
        "ba be bi bo bu  du ca ce ci co cu",
        "ba be bi bo bu ca ce ci co cu\n du",
    ]
    assert [remove_tokens(found, 4, place) for place in (0, 0.5, 1)] == [
        "bu ca ce ci co cu",
        "ba be bi  ci co cu",
        "ba be bi bo bu ca",
    ]


def test_removals_at_both_ends_are_of_the_same_size():
    sizes = np.array([3, 1, 1, 1, 1, 1, 1, 3])
    pieces = tuple(f"{chr(97 + i)} " for i in range(8))
    uneven = Document(pieces, sizes, np.zeros(8, int))
    # The first and the last word are nearer to two tokens than nothing is.
    assert remove_tokens(uneven, 2, 0) == "b c d e f g h"
    assert remove_tokens(uneven, 2, 1).split() == list("abcdefg")
    assert remove_tokens(uneven, 1, 0).split() == list("abcdefgh")
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 5, 8)
        ahead = Document(pieces, sizes, np.zeros(8, int))
        mirrored = Document(pieces[::-1], sizes[::-1], np.zeros(8, int))
        size = int(rng.integers(1, 6))
        at_start = remove_tokens(ahead, size, 0).split()
        assert at_start == remove_tokens(mirrored, size, 1).split()[::-1]


def test_a_text_without_tokens_has_no_part_in_a_document():
    texts = ["   ", *corpus(4, 6)]
    for seed in range(4):
        (found,) = make_documents(
            texts, make_word_tokenizer(), length=24, count=1, seed=seed
        )
        assert len(found.pieces) == 24 and found.source[-1] == 3


def test_a_corpus_that_is_too_short():
    message = "40 texts gives 2 documents of 100 tokens and 5 are needed"
    with pytest.raises(ValueError, match=message):
        make_documents(corpus(40, 6), TOKENIZER, length=100, count=5)
