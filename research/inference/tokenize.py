"""Texts to rows of tokens: as they are, or by the templates of a method."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tokenizers

from research.inference.batching import TokenRows
from research.text.templates import Prompt, tokenize_with_prompt
from research.text.tokenization import tokenize_texts
from research.text.tokens import PST, add_special_token

# read(texts, role) -> the rows of the texts for each template; their vectors are
# averaged.
Reader = Callable[[Sequence[str], str], list[TokenRows]]


def plain_reader(
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    prompts: Mapping[str, str] | None = None,
) -> Reader:
    """Texts with the prompt of their role before them, cut to `max_length` tokens."""

    def read(texts, role):
        prompt = (prompts or {}).get(role, "")
        return [TokenRows(tokenize_texts(tokenizer, texts, max_length, prompt=prompt))]

    return read


def method_reader(
    method: Prompt,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    mark: int | None = None,
) -> Reader:
    """Texts in the templates of a method.

    Args:
        method: one of `templates.METHODS`.
        tokenizer: it need not know the token <PST>.
        max_length: of a row, the templates included.
        mark: the id of <PST>; None where it has no place.
    """
    if mark is not None:
        tokenizer, _ = add_special_token(tokenizer)

    def rows(ids, pooled, marks):
        if marks is not None:
            ids = [
                _put(row, place, mark) for row, place in zip(ids, marks, strict=True)
            ]
        return TokenRows(ids, [chosen.astype(np.int32) for chosen in pooled], marks)

    def read(texts, role):
        parts = tokenize_with_prompt(method, tokenizer, texts, max_length, role)
        return [rows(*part) for part in parts]

    return read


def marked(method: Prompt | None) -> bool:
    """Whether every template of the method has a place for <PST>.

    Raises:
        ValueError: only some of them have.
    """
    if method is None:
        return False
    every = [t for templates in method.templates.values() for t in templates]
    places = {any(piece.special == PST for piece in template) for template in every}
    if len(places) > 1:
        raise ValueError(f"only some templates of the method have a place for {PST}")
    return places.pop()


def _put(row: np.ndarray, place: int, token: int) -> np.ndarray:
    """The row with a token put at that place."""
    return np.where(np.arange(len(row)) == place, np.int32(token), row)
