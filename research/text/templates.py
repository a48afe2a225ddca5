"""Texts put into templates: token ids, and which of them count in pooling."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

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


class PromptedTexts(NamedTuple):
    """N texts in a template.

    Attributes:
        ids: N arrays [S] int32.
        pooled: N arrays [S] bool, at least one True each.
        mark: [N] int32, the place of <PST> in its row; None without one.
    """

    token_ids: list[np.ndarray]
    pooling_mask: list[np.ndarray]
    pst_positions: np.ndarray | None


def identity(text: str) -> str:
    """The text itself."""
    return text


class Prompt(NamedTuple):
    """How texts are put to a model.

    Attributes:
        templates: role "query" or "document" -> one template, or several whose vectors
            are averaged.
        pool: a key of pooling.POOLS that the method asks for; None leaves the model's.
        rewrite: what is done to a text before it is put into a template.
    """

    templates: Mapping[str, tuple[Template, ...]]
    pool: str | None = None
    rewrite: Callable[[str], str] = identity


def tokenize_with_template(
    template: Template,
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    max_length: int,
    *,
    instruction: str = "",
    label: Callable[[int], str] = "text {}".format,
) -> PromptedTexts:
    """The tokens of texts in a template.

    Only the text of a row that is longer than max_length is cut, at the end of a token
    and never within a character: every copy of it to floor((max_length - the other
    tokens) / copies) tokens, as Echo embeddings (Springer et al. 2024) have it for a
    given total. What is left is tokenised again, so that the row is that of a shorter
    text. A token over the border of two pieces belongs to that of its last character.

    Args:
        max_length: tokens of a row, all pieces included.
        instruction: what {instruction} becomes.
        label: what an error calls the text of an index.

    Raises:
        ValueError: the template has no slot or another placeholder, its instruction is
            missing, the tokenizer lacks one of its special tokens, it leaves no room
            for a text, or a text has no tokens.
    """
    runs = group_pieces(template, tokenizer, instruction)
    slots = np.array([piece.is_text for piece in template])
    _check_room(runs, slots, tokenizer, max_length)
    counts = np.array([piece.pooled for piece in template])
    marks = np.array([piece.special == PST for piece in template])
    ids, pooled, places = [], [], []
    for start in range(0, len(texts), ENCODE_BATCH_SIZE):
        chunk = texts[start : start + ENCODE_BATCH_SIZE]
        rows = encode_runs(runs, tokenizer, chunk)
        for index, (text, row) in enumerate(zip(chunk, rows, strict=True), start):
            if not text.strip() or not _touches(row, slots):
                raise ValueError(f"{label(index)} has no tokens: {text!r}")
        _cut(rows, chunk, runs, slots, tokenizer, max_length)
        for index, row in enumerate(rows, start):
            ids.append(row.token_ids)
            pooled.append(counts[row.last_piece])
            places.append(int(marks[row.last_piece].argmax()))
            if not pooled[-1].any():
                raise ValueError(f"{label(index)} has no tokens to pool")
    return PromptedTexts(
        ids, pooled, np.array(places, np.int32) if marks.any() else None
    )


def tokenize_with_prompt(
    prompt: Prompt,
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    max_length: int,
    role: str,
    *,
    label: Callable[[int], str] = "text {}".format,
) -> list[PromptedTexts]:
    """The tokens of texts in every template that a method has for the role.

    Raises:
        ValueError: the method has none for the role, or as `prompted`.
    """
    if role not in prompt.templates:
        raise ValueError(
            f"the method has no template for the role {role!r}; it has those of "
            f"{', '.join(prompt.templates)}"
        )
    texts = [prompt.rewrite(text) for text in texts]
    return [
        tokenize_with_template(template, tokenizer, texts, max_length, label=label)
        for template in prompt.templates[role]
    ]


def parse_template(text: str, *, pool_all: bool = False) -> Template:
    r"""The template that a line says, all of it tokenised as one string.

    "Query: {text}\nAgain: {text!}": {text} is the text, {text!} one that is pooled; if
    none has the mark, all are. What follows the last pooled text is pooled too, so that
    the last token is that of the row. {instruction} is the instruction, {eos} the end
    token, {close} what the tokenizer puts after a text, <PST> that token, {{ and }} are
    braces. What the tokenizer puts before a text comes first.

    Args:
        whole: all tokens are pooled.

    Raises:
        ValueError: there is no {text}, or another placeholder.
    """
    pieces, literal = [Piece(special="bos")], ""
    for part in re.split(r"(\{\{|\}\}|\{\w+!?\}|<PST>)", text):
        if part in ("{text}", "{text!}", "{eos}", "{close}", PST):
            if literal:
                pieces.append(Piece(literal, joined=True))
                literal = ""
            pieces.append(PLACEHOLDER_PIECES[part])
        else:
            literal += part
    if literal:
        pieces.append(Piece(literal, joined=True))
    for piece in pieces:
        fill_placeholders(piece.literal, "...")
    if not any(piece.is_text for piece in pieces):
        raise ValueError(f"the template {text!r} has no {{text}}")
    marked = [i for i, piece in enumerate(pieces) if piece.pooled]
    slots = marked or [i for i, piece in enumerate(pieces) if piece.is_text]
    return tuple(
        piece._replace(pooled=pool_all or i in slots or i > slots[-1])
        for i, piece in enumerate(pieces)
    )


def escape_braces(text: str) -> str:
    """The text as a template's literal text that says it."""
    return text.replace("{", "{{").replace("}", "}}")


def _touches(row: TemplateRow, slots: np.ndarray) -> bool:
    """Whether a token holds any of the text."""
    within = np.concatenate([[0], np.cumsum(slots)])
    return bool((within[row.last_piece + 1] > within[row.first_piece]).any())


def _check_room(
    runs: Sequence[TemplateRun],
    slots: np.ndarray,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
) -> None:
    row = encode_runs(runs, tokenizer, ["a"])[0]
    if len(row.token_ids) > max_length:
        own = len(row.token_ids) - slots[row.last_piece].sum()
        raise ValueError(
            f"the template, with its instruction, has {own} tokens, which leaves no "
            f"room for a text in max_length {max_length}"
        )


def _cut(
    rows: list[TemplateRow],
    texts: Sequence[str],
    runs: Sequence[TemplateRun],
    slots: np.ndarray,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
) -> None:
    """Puts rows of shorter texts in the place of rows that are too long."""
    copies, one = int(slots.sum()), int(slots.argmax())
    ends, kept = {}, {}
    for index, row in enumerate(rows):
        if len(row.token_ids) > max_length:
            others = len(row.token_ids) - slots[row.last_piece].sum()
            ends[index] = row.text_end[row.last_piece == one]
            # At least one, which has room beside a template that passed _check_room.
            kept[index] = max(1, (max_length - others) // copies)
    while kept:
        places = {i: max(1, ends[i][:k].max(initial=0)) for i, k in kept.items()}
        shorter = [texts[i][:place] for i, place in places.items()]
        again = encode_runs(runs, tokenizer, shorter)
        for index, row in zip(places, again, strict=True):
            over = len(row.token_ids) - max_length
            if over <= 0:
                rows[index] = row
                del kept[index]
            elif kept[index] == 1:
                raise ValueError(
                    f"the first token of {texts[index][:40]!r} has no room beside the "
                    f"template in max_length {max_length}"
                )
            else:
                kept[index] = max(1, kept[index] - -(-over // copies))


PLACEHOLDER_PIECES = {
    "{text}": Piece(is_text=True, joined=True),
    "{text!}": Piece(is_text=True, joined=True, pooled=True),
    "{eos}": Piece(special="eos"),
    "{close}": Piece(special="close"),
    PST: Piece(special=PST, joined=True),
}
