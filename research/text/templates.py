"""Prompt templates: tokenizes texts in a template, and marks the tokens to pool."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from research.text.late_interaction import LateInteraction, prepare_tokens
from research.text.tokenization import ENCODE_BATCH_SIZE
from research.text.tokens import (
    PST,
    Piece,
    Template,
    TemplateRow,
    TemplateRun,
    encode_runs,
    fill_placeholders,
    group_pieces,
)

# {placeholder in a template: its piece}
PLACEHOLDER_PIECES = {
    "{text}": Piece(is_text=True, joined=True),
    "{text!}": Piece(is_text=True, joined=True, pooled=True),
    "{eos}": Piece(special="eos"),
    "{close}": Piece(special="close"),
    PST: Piece(special=PST, joined=True),
}


class PromptedTexts(NamedTuple):
    """N texts, tokenized in a template.

    Attributes:
        token_ids: N arrays [S] int32.
        pooling_mask: N arrays [S] bool, each with at least one True.
        pst_positions: [N] int32, the position of <PST> in each row; None if the
            template does not have the token.
    """

    token_ids: list[np.ndarray]
    pooling_mask: list[np.ndarray]
    pst_positions: np.ndarray | None


def identity(text: str) -> str:
    """The text itself."""
    return text


class Prompt(NamedTuple):
    """The templates for the texts of each role.

    Attributes:
        templates: {"query" or "document": templates}. The vectors of several templates
            are averaged.
        pool: Name of the pooling that the prompt is made for; None for the model's own.
        rewrite: Function applied to a text before it is put into a template.
        late_interaction: What is then done to the tokens, for a vector per token; None
            for nothing.
    """

    templates: Mapping[str, tuple[Template, ...]]
    pool: str | None = None
    rewrite: Callable[[str], str] = identity
    late_interaction: LateInteraction | None = None


def tokenize_with_template(
    template: Template,
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    max_length: int,
    *,
    instruction: str = "",
    allow_empty: bool = False,
    label: Callable[[int], str] = "text {}".format,
) -> PromptedTexts:
    """Tokenizes texts in a template.

    If a row is longer than max_length, only the text is truncated, at the end of a
    token. Each copy of the text keeps floor((max_length - the other tokens) / copies)
    tokens, as in Echo embeddings (Springer et al. 2024). The shorter text is tokenized
    again, so that the row equals that of a text of this length. A token that crosses
    the border of two pieces belongs to the piece of its last character.

    Args:
        template: The template.
        tokenizer: Tokenizer without truncation and padding.
        texts: N texts.
        max_length: Maximum number of tokens per row, all pieces included.
        instruction: Text that replaces {instruction}.
        allow_empty: Whether a text may have no tokens besides those of the template.
        label: Function from the index of a text to its name in error messages.

    Raises:
        ValueError: The template has no {text} or an unknown placeholder, its
            instruction is missing, the tokenizer lacks one of its special tokens, it
            leaves no room for a text, or a text has no tokens.
    """
    runs = group_pieces(template, tokenizer, instruction)
    # Properties of the P pieces: [P] bool each.
    is_text = np.array([piece.is_text for piece in template])
    is_pooled = np.array([piece.pooled for piece in template])
    is_pst = np.array([piece.special == PST for piece in template])
    _check_room(runs, is_text, tokenizer, max_length)
    # Some texts at a time, since encodings take much memory.
    token_ids, pooling_masks, pst_positions = [], [], []
    for start in range(0, len(texts), ENCODE_BATCH_SIZE):
        batch = texts[start : start + ENCODE_BATCH_SIZE]
        rows = encode_runs(runs, tokenizer, batch)
        for index, (text, row) in enumerate(zip(batch, rows, strict=True), start):
            is_filled = text.strip() and _has_text_tokens(row, is_text)
            if not (allow_empty or is_filled):
                raise ValueError(f"{label(index)} has no tokens: {text!r}")
        rows = _truncate(rows, batch, runs, is_text, tokenizer, max_length)
        for index, row in enumerate(rows, start):
            # [S] bool: a token is pooled if the piece that it ends in is.
            mask = is_pooled[row.last_piece]
            if not mask.any():
                raise ValueError(f"{label(index)} has no tokens to pool")
            token_ids.append(row.token_ids)
            pooling_masks.append(mask)
            pst_positions.append(int(is_pst[row.last_piece].argmax()))
    positions = np.array(pst_positions, np.int32) if is_pst.any() else None
    return PromptedTexts(token_ids, pooling_masks, positions)


def tokenize_with_prompt(
    prompt: Prompt,
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    max_length: int,
    role: str,
    *,
    allow_empty: bool = False,
    label: Callable[[int], str] = "text {}".format,
) -> list[PromptedTexts]:
    """Tokenizes texts in every template that a prompt has for a role.

    Raises:
        ValueError: The prompt has no template for the role, or as in
            `tokenize_with_template`.
    """
    if role not in prompt.templates:
        raise ValueError(
            f"the prompt has no template for the role {role!r}; it has those of "
            f"{', '.join(prompt.templates)}"
        )
    late = prompt.late_interaction
    if late is not None:
        max_length = late.find_length(role, max_length)
    # One result per template.
    texts = [prompt.rewrite(text) for text in texts]
    results = [
        tokenize_with_template(
            template, tokenizer, texts, max_length, allow_empty=allow_empty, label=label
        )
        for template in prompt.templates[role]
    ]
    if late is None:
        return results
    return [
        PromptedTexts(
            *prepare_tokens(late, tokenizer, role, *rows[:2], max_length),
            rows.pst_positions,
        )
        for rows in results
    ]


def parse_template(line: str, *, pool_all: bool = False) -> Template:
    r"""Reads a template such as "Query: {text}\nAgain: {text!}".

    {text}         the text; pooled if there is no {text!}
    {text!}        a copy of the text that is pooled
    {instruction}  the instruction
    {eos}          the end token
    {close}        the special tokens that the tokenizer adds after a text
    <PST>          the token of token prepending
    {{ and }}      braces

    Everything after the last pooled copy is pooled, too, so that last-token pooling
    takes the last token of the row. The special tokens that the tokenizer adds before a
    text come first. The whole line is tokenized as one string.

    Args:
        line: The template.
        pool_all: Whether all tokens are pooled.

    Raises:
        ValueError: There is no {text}, or a placeholder is unknown.
    """
    # Split the line into pieces.
    pieces, literal = [Piece(special="bos")], ""
    for part in re.split(r"(\{\{|\}\}|\{\w+!?\}|<PST>)", line):
        if part not in PLACEHOLDER_PIECES:
            literal += part
            continue
        if literal:
            pieces.append(Piece(literal, joined=True))
        pieces.append(PLACEHOLDER_PIECES[part])
        literal = ""
    if literal:
        pieces.append(Piece(literal, joined=True))
    # Check the placeholders.
    for piece in pieces:
        fill_placeholders(piece.literal, "any instruction")
    if not any(piece.is_text for piece in pieces):
        raise ValueError(f"the template {line!r} has no {{text}}")
    # Pool the copies with a !, or all copies, and everything after the last of them.
    pooled = [i for i, piece in enumerate(pieces) if piece.pooled]
    pooled = pooled or [i for i, piece in enumerate(pieces) if piece.is_text]
    return tuple(
        piece._replace(pooled=pool_all or i in pooled or i > pooled[-1])
        for i, piece in enumerate(pieces)
    )


def escape_braces(text: str) -> str:
    """Doubles the braces of a text, so that `parse_template` takes them literally."""
    return text.replace("{", "{{").replace("}", "}}")


def _has_text_tokens(row: TemplateRow, is_text: np.ndarray) -> bool:
    """Whether any token of a row covers a part of the text."""
    text_pieces_before = np.concatenate([[0], np.cumsum(is_text)])  # [P + 1]
    num_text_pieces = (
        text_pieces_before[row.last_piece + 1] - text_pieces_before[row.first_piece]
    )  # [S] number of text pieces that each token covers
    return bool((num_text_pieces > 0).any())


def _check_room(
    runs: Sequence[TemplateRun],
    is_text: np.ndarray,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
) -> None:
    """Checks that the template leaves room for a short text."""
    row = encode_runs(runs, tokenizer, ["a"])[0]
    if len(row.token_ids) > max_length:
        template_length = len(row.token_ids) - is_text[row.last_piece].sum()
        raise ValueError(
            f"the template, with its instruction, has {template_length} tokens, which "
            f"leaves no room for a text in max_length {max_length}"
        )


def _truncate(
    rows: Sequence[TemplateRow],
    texts: Sequence[str],
    runs: Sequence[TemplateRun],
    is_text: np.ndarray,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
) -> list[TemplateRow]:
    """Replaces rows that are too long by rows of truncated texts."""
    rows = list(rows)
    num_copies, first_copy = int(is_text.sum()), int(is_text.argmax())
    # For each long row: the end of each token of its text, in characters, and the
    # number of these tokens that fit.
    token_ends, num_kept = {}, {}
    for index, row in enumerate(rows):
        if len(row.token_ids) > max_length:
            template_length = len(row.token_ids) - is_text[row.last_piece].sum()
            token_ends[index] = row.text_end[row.last_piece == first_copy]
            # At least one token fits, as _check_room has checked.
            num_kept[index] = max(1, (max_length - template_length) // num_copies)
    # The tokens of a shorter text may differ; shorten further until each row fits.
    while num_kept:
        lengths = {  # in characters
            index: max(1, token_ends[index][:count].max(initial=0))
            for index, count in num_kept.items()
        }
        shorter = [texts[index][:length] for index, length in lengths.items()]
        for index, row in zip(
            lengths, encode_runs(runs, tokenizer, shorter), strict=True
        ):
            excess = len(row.token_ids) - max_length
            if excess <= 0:
                rows[index] = row
                del num_kept[index]
            elif num_kept[index] == 1:
                raise ValueError(
                    f"the first token of {texts[index][:40]!r} has no room beside the "
                    f"template in max_length {max_length}"
                )
            else:
                num_kept[index] = max(1, num_kept[index] - -(-excess // num_copies))
    return rows
