"""Texts to rows of tokens: as they are, or by the templates of a method."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tokenizers

from research.data.text import token_ids
from research.eval.rows import Rows

if TYPE_CHECKING:
    from research.data.templates import Method

# read(texts, role) -> the rows of the texts for each template; their vectors are
# averaged.
Reader = Callable[[Sequence[str], str], list[Rows]]
# The token that token prepending overwrites.
MARK = "<PST>"


def plain_reader(
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    prompts: Mapping[str, str] | None = None,
) -> Reader:
    """Texts with the prompt of their role before them, cut to `max_length` tokens."""

    def read(texts, role):
        prompt = (prompts or {}).get(role, "")
        return [Rows(token_ids(tokenizer, texts, max_length, prompt=prompt))]

    return read


def method_reader(
    method: "Method",
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    *,
    instruction: str = "",
    mark: int | None = None,
) -> Reader:
    """Texts in the templates of a method.

    Args:
        method: one of `templates.METHODS`.
        tokenizer: it need not know the token <PST>.
        max_length: of a row, the templates included.
        instruction: what {instruction} becomes.
        mark: the id of <PST>.
    """
    from research.data.templates import prompted

    if mark is not None:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_special_tokens([MARK])

    def rows(template, texts):
        given = {"instruction": instruction}
        ids, pooled, marks = prompted(template, tokenizer, texts, max_length, **given)
        if marks is not None:
            ids = [
                _put(row, place, mark) for row, place in zip(ids, marks, strict=True)
            ]
        return Rows(ids, [chosen.astype(np.int32) for chosen in pooled], marks)

    def read(texts, role):
        texts = [method.rewrite(text) for text in texts]
        return [rows(template, texts) for template in method.templates[role]]

    return read


def marked(method: "Method | None") -> bool:
    """Whether every template of the method has a place for <PST>.

    Raises:
        ValueError: only some of them have.
    """
    if method is None:
        return False
    every = [t for templates in method.templates.values() for t in templates]
    places = {any(piece.special == MARK for piece in template) for template in every}
    if len(places) > 1:
        raise ValueError(
            f"some templates of the method have a {MARK} and some have not"
        )
    return places.pop()


def _put(row: np.ndarray, place: int, token: int) -> np.ndarray:
    """The row with a token put at that place."""
    return np.where(np.arange(len(row)) == place, np.int32(token), row)
