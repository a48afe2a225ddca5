"""Tokenization of texts for embedding, with prompts before them or in templates."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from research.inference.batching import TokenRows
from research.text.chunk_rows import (
    ChunkedText,
    tokenize_passages,
)
from research.text.templates import Prompt, tokenize_with_prompt
from research.text.tokenization import num_token_ids, tokenize_texts
from research.text.tokens import PST, add_special_token

# tokenize(texts, role, label) -> the rows of all texts, for each template. The embedder
# averages the vectors of several templates; `label` names a text in error messages.
TokenizeFn = Callable[[Sequence[str], str, Callable[[int], str]], list[TokenRows]]


class TokenizedTexts(NamedTuple):
    """Texts as rows of tokens, ready for the encoder.

    Attributes:
        role: Role of the texts, "query" or "document".
        rows: The rows of all texts, for each template of the prompt.
        label: Function from the index of a text to its name in error messages.
        chunked: The chunks of N documents; None for texts that are not cut.
    """

    role: str
    rows: list[TokenRows]
    label: Callable[[int], str]
    chunked: list[ChunkedText] | None = None


def make_plain_tokenize(
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    prompts: Mapping[str, str],
    allow_empty: bool = False,
) -> TokenizeFn:
    """Makes a function that tokenizes texts with the prompt of their role before them.

    Args:
        tokenizer: Tokenizer of the model.
        max_length: Maximum number of tokens; longer texts are cut.
        prompts: Prefix of the texts for each role.
        allow_empty: Whether a text may have no tokens besides prompt and special ones.
    """

    def tokenize(texts, role, label):
        prompt = prompts.get(role, "")
        token_ids = tokenize_texts(
            tokenizer,
            texts,
            max_length,
            prompt=prompt,
            allow_empty=allow_empty,
            label=label,
        )
        return [TokenRows(token_ids)]

    return tokenize


def tokenize_in_context(
    tokenizer: tokenizers.Tokenizer,
    passages: Sequence[tuple[str, tuple[str, str]]],
    *,
    prompt: str,
    max_length: int,
    label: Callable[[int], str],
) -> TokenRows:
    """Rows of passages within the texts around them, whose own tokens are the span.

    Args:
        tokenizer: Tokenizer of the model.
        passages: Passages, each with the text before and after it.
        prompt: Prefix of the text before.
        max_length: Maximum number of tokens; what is far from the passage is cut.
        label: Function from the index of a passage to its name in error messages.

    Raises:
        ValueError: A passage has no tokens.
    """
    token_ids, masks = tokenize_passages(
        tokenizer, passages, prompt=prompt, max_length=max_length, label=label
    )
    return TokenRows(token_ids, [mask.astype(np.int32) for mask in masks])


def make_template_tokenize(
    prompt: Prompt,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    pst_id: int | None = None,
    allow_empty: bool = False,
) -> TokenizeFn:
    """Makes a function that tokenizes texts in the templates of a prompt.

    Args:
        prompt: The prompt.
        tokenizer: Tokenizer of the model, with or without the token <PST>.
        max_length: Maximum number of tokens in a row, the template's included.
        pst_id: Id of <PST> in the model's token table; None for a prompt without it.
        allow_empty: Whether a text may have no tokens besides those of its template.
    """
    if pst_id is not None:
        tokenizer, _ = add_special_token(tokenizer)

    def tokenize(texts, role, label):
        # One result per template; the pooled tokens of a text are one span.
        return [
            TokenRows(
                put_pst(token_ids, pst_positions),
                [mask.astype(np.int32) for mask in pooling_mask],
                pst_positions,
            )
            for token_ids, pooling_mask, pst_positions in tokenize_with_prompt(
                prompt,
                tokenizer,
                texts,
                max_length,
                role,
                allow_empty=allow_empty,
                label=label,
            )
        ]

    def put_pst(token_ids, positions):
        # The id of <PST> in the model's table may differ from the tokenizer's.
        if positions is None:
            return token_ids
        return [
            np.where(np.arange(len(row)) == position, np.int32(pst_id), row)
            for row, position in zip(token_ids, positions, strict=True)
        ]

    return tokenize


def check_token_ids(
    rows: TokenRows,
    tokenizer: tokenizers.Tokenizer,
    vocab_size: int,
    label: Callable[[int], str],
) -> None:
    """Checks that all tokens have a row in the token table.

    A tokenizer may have tokens that were added after the training of the model.

    Args:
        rows: Rows of tokens.
        tokenizer: Tokenizer of the model.
        vocab_size: Number of rows of the token table, without <PST>.
        label: Function from the index of a row to its name in error messages.

    Raises:
        ValueError: A token is beyond the table.
    """
    if num_token_ids(tokenizer) <= vocab_size:
        return
    for index, token_ids in enumerate(rows.token_ids):
        if rows.pst_positions is not None:
            token_ids = np.delete(token_ids, rows.pst_positions[index])
        token_id = int(token_ids.max(initial=0))
        if token_id >= vocab_size:
            raise ValueError(
                f"{label(index)} has the token {tokenizer.id_to_token(token_id)!r} of "
                f"id {token_id}, but the model's token table has {vocab_size} rows"
            )


def has_pst(prompt: Prompt | None) -> bool:
    """Whether every template of the prompt has the token <PST>.

    Raises:
        ValueError: Only some templates have it.
    """
    if prompt is None:
        return False
    templates = [t for group in prompt.templates.values() for t in group]
    # Either all templates have it or none.
    answers = {
        any(piece.special == PST for piece in template) for template in templates
    }
    if len(answers) > 1:
        raise ValueError(f"only some templates of the prompt have the token {PST}")
    return answers.pop()
