"""Random views of a text, by three kinds of typing errors one after the other.

As the code of "Layer by Layer" (Skean et al. 2025) makes them with nlpaug: words are
split, letters are replaced by random ones, and by their neighbors on the keyboard.
"""

from collections.abc import Callable

import numpy as np

WORD_SHARE = 0.3  # of a text's words that each kind of error changes
LETTER_SHARE = 0.3  # of the letters of such a word
MAX_WORDS = 10
MIN_LETTERS = 4  # shorter words stay as they are
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# {letter: its neighbors in the same row of the keyboard}
NEIGHBORS = {
    key: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in KEY_ROWS
    for i, key in enumerate(row)
}


def make_view(text: str, rng: np.random.Generator) -> str:
    """A random view of a text: three kinds of typing errors in some of its words."""
    for change in (_split_word, _replace_letters, _replace_by_neighbors):
        text = _replace_words(text, change, rng)
    return text


def _replace_words(
    text: str, change: Callable[..., str], rng: np.random.Generator
) -> str:
    """Applies a change to a share of the longer words, at least to one."""
    # Spaces stay where they are, so that short words and gaps do not change.
    words = text.split(" ")
    candidates = [i for i, word in enumerate(words) if len(word) >= MIN_LETTERS]
    count = min(MAX_WORDS, max(1, round(WORD_SHARE * len(words))), len(candidates))
    for i in rng.permutation(candidates)[:count]:
        words[i] = change(words[i], rng)
    return " ".join(words)


def _split_word(word: str, rng: np.random.Generator) -> str:
    position = rng.integers(1, len(word))
    return f"{word[:position]} {word[position:]}"


def _replace_letters(word: str, rng: np.random.Generator) -> str:
    return _replace_some(word, lambda letter: LETTERS, rng)


def _replace_by_neighbors(word: str, rng: np.random.Generator) -> str:
    return _replace_some(word, lambda letter: NEIGHBORS.get(letter.lower()), rng)


def _replace_some(
    word: str, choose: Callable[[str], str | None], rng: np.random.Generator
) -> str:
    """Replaces a share of a word's letters by one of those that `choose` gives."""
    # A letter may be replaced by itself, and other signs have no neighbors.
    letters = list(word)
    count = max(1, round(LETTER_SHARE * len(letters)))
    for i in rng.permutation(len(letters))[:count]:
        options = choose(letters[i]) or letters[i]
        letters[i] = options[rng.integers(len(options))]
    return "".join(letters)
