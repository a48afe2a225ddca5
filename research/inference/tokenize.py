"""Texts to rows of tokens, after the prompt of their role or in templates."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tokenizers

from research.inference.batching import TokenRows
from research.text.templates import Prompt, tokenize_with_prompt
from research.text.tokenization import tokenize_texts
from research.text.tokens import PST, add_special_token

# tokenize(texts, role) -> the rows of the texts for each template; the vectors of
# several templates are averaged.
TokenizeFn = Callable[[Sequence[str], str], list[TokenRows]]


def make_plain_tokenize(
    tokenizer: tokenizers.Tokenizer, max_length: int, prompts: Mapping[str, str]
) -> TokenizeFn:
    """Tokenizes texts after the prompt of their role, cut to `max_length` tokens."""

    def tokenize(texts, role):
        prompt = prompts.get(role, "")
        return [TokenRows(tokenize_texts(tokenizer, texts, max_length, prompt=prompt))]

    return tokenize


def make_template_tokenize(
    prompt: Prompt,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    pst_id: int | None = None,
) -> TokenizeFn:
    """Tokenizes texts in the templates of a prompt.

    Args:
        prompt: One of `prompts.PROMPTS`.
        tokenizer: It need not know the token <PST>.
        max_length: Number of tokens of a row, those of the template included.
        pst_id: Token id of <PST>; None for a prompt without it.
    """
    if pst_id is not None:
        tokenizer, _ = add_special_token(tokenizer)

    def tokenize(texts, role):
        return [
            TokenRows(
                put_pst(token_ids, pst_positions),
                [mask.astype(np.int32) for mask in pooling_mask],
                pst_positions,
            )
            for token_ids, pooling_mask, pst_positions in tokenize_with_prompt(
                prompt, tokenizer, texts, max_length, role
            )
        ]

    def put_pst(token_ids, positions):
        # The id in the model's table, which may be another than the tokenizer's.
        if positions is None:
            return token_ids
        return [
            np.where(np.arange(len(row)) == position, np.int32(pst_id), row)
            for row, position in zip(token_ids, positions, strict=True)
        ]

    return tokenize


def has_pst(prompt: Prompt | None) -> bool:
    """Whether every template of the prompt has the token <PST>.

    Raises:
        ValueError: Only some of them have.
    """
    if prompt is None:
        return False
    templates = [t for group in prompt.templates.values() for t in group]
    answers = {
        any(piece.special == PST for piece in template) for template in templates
    }
    if len(answers) > 1:
        raise ValueError(f"only some templates of the prompt have the token {PST}")
    return answers.pop()
