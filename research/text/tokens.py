"""Pieces of prompt templates, and their tokenization.

A template is a tuple of pieces: literal text, the inserted text, special tokens.
Adjacent pieces that are tokenized together form a run.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from research.text.tokenization import enclosing_tokens

PST = "<PST>"  # the token of token prepending (Fu et al. 2024)
# Names of end tokens; the first one that a tokenizer has is its end token.
END_TOKENS = (
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "[EOS]",
    "[SEP]",
)
# Special pieces whose token ids do not depend on their neighbors.
ID_PIECES = ("bos", "eos", "close")
# As in str.format, {{ and }} are braces; unlike there, a single brace is literal.
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+!?)\}")
MAX_LISTED = 8  # names that an error message lists


class Piece(NamedTuple):
    """A part of a template.

    Attributes:
        literal: Literal text, which may contain {instruction}; {{ and }} are braces.
        is_text: Whether the text is inserted here; it is truncated if necessary.
        special: "bos" and "close" are the tokens that the tokenizer adds before and
            after a text, "eos" is its end token, and any other value is the name of an
            added token, such as <PST>.
        pooled: Whether the tokens of the piece are pooled.
        joined: Whether the piece is tokenized as one string with the piece before it.
    """

    literal: str = ""
    is_text: bool = False
    special: str = ""
    pooled: bool = False
    joined: bool = False


Template = tuple[Piece, ...]


class TemplateRun(NamedTuple):
    """Pieces that are tokenized together: P concatenated strings, or token ids.

    Attributes:
        pieces: [P] indices of the pieces in the template.
        strings: [P] literal text; None for the inserted text.
        token_ids: [S] int32 ids of a piece of ID_PIECES; None for strings.
    """

    pieces: list[int]
    strings: list[str | None]
    token_ids: np.ndarray | None


class TemplateRow(NamedTuple):
    """The S tokens of a text in a template.

    Attributes:
        token_ids: [S] int32 token ids.
        first_piece, last_piece: [S] index of the pieces that a token begins and ends
            in.
        text_end: [S] number of the text's characters up to the end of a token, for
            tokens that end inside the text.
    """

    token_ids: np.ndarray
    first_piece: np.ndarray
    last_piece: np.ndarray
    text_end: np.ndarray


def add_special_token(
    tokenizer: tokenizers.Tokenizer, name: str = PST
) -> tuple[tokenizers.Tokenizer, int]:
    """Adds a token to a copy of a tokenizer.

    Returns:
        The copy, and the id of the new token: the old vocabulary size.
    """
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens([tokenizers.AddedToken(name, normalized=False)])
    return copy, copy.token_to_id(name)


def find_end_token(tokenizer: tokenizers.Tokenizer) -> int:
    """The id of the token that ends a text.

    If the tokenizer adds exactly one token after a text, it is that token; otherwise it
    is the first of END_TOKENS that is among the added tokens.

    Raises:
        ValueError: There is no such token.
    """
    closing = enclosing_tokens(tokenizer)[1]
    if len(closing) == 1:
        return int(closing[0])
    added = _added_tokens(tokenizer)
    for name in END_TOKENS:
        if name in added:
            return added[name]
    raise ValueError(
        f"the tokenizer has no end token; looked for {', '.join(END_TOKENS)} among its "
        f"added tokens {_format_names(added)}"
    )


def group_pieces(
    template: Template, tokenizer: tokenizers.Tokenizer, instruction: str
) -> list[TemplateRun]:
    """Groups the pieces of a template into runs that are tokenized together.

    Raises:
        ValueError: The template has no text piece, a placeholder other than
            {instruction}, no instruction for it, or a special token that the tokenizer
            lacks.
    """
    if not any(piece.is_text for piece in template):
        line = "".join(piece.literal or f"<{piece.special}>" for piece in template)
        raise ValueError(f"the template {line!r} has no place for a text")
    runs = []
    for index, piece in enumerate(template):
        # Pieces that are token ids are runs of their own; so are tokens of the
        # vocabulary that text does not become by itself, such as BERT's [unused0].
        if piece.special in ID_PIECES or (
            piece.special and piece.special not in _added_tokens(tokenizer)
        ):
            token_ids = _special_token_ids(tokenizer, piece.special)
            runs.append(TemplateRun([index], [], token_ids))
            continue
        string = (
            None if piece.is_text else fill_placeholders(piece.literal, instruction)
        )
        if piece.special:
            _special_token_ids(tokenizer, piece.special)  # the tokenizer must have it
            string = piece.special
        # A joined string continues the run of the piece before it.
        if piece.joined and runs and runs[-1].token_ids is None:
            runs[-1].pieces.append(index)
            runs[-1].strings.append(string)
        else:
            runs.append(TemplateRun([index], [string], None))
    return runs


def fill_placeholders(literal: str, instruction: str) -> str:
    """Replaces {instruction}, {{ and }} in the literal text of a template.

    Raises:
        ValueError: There is a different placeholder, or the instruction is missing.
    """

    def replace(match: re.Match) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] != "instruction":
            raise ValueError(
                f"{match[0]} in the template {literal!r} would be embedded as it "
                "stands; known are {text}, {text!}, {instruction}, {eos} and {close} "
                "(in a Piece only {instruction}), and {{ is a brace"
            )
        if not instruction:
            raise ValueError(f"the template {literal!r} needs an instruction")
        return instruction

    return PLACEHOLDER.sub(replace, literal)


def encode_runs(
    runs: Sequence[TemplateRun], tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> list[TemplateRow]:
    """Tokenizes each text in a template, without truncation."""
    rows_per_run, cache = [], {}
    for run in runs:
        # Token ids are the same for all texts.
        if run.token_ids is not None:
            piece = np.full(len(run.token_ids), run.pieces[0])  # [S]
            row = TemplateRow(run.token_ids, piece, piece, np.zeros_like(piece))
            rows_per_run.append([row] * len(texts))
            continue
        # Runs of the same strings, such as copies of the text, are tokenized once.
        key = tuple(run.strings)
        if key not in cache:
            cache[key] = list(_encode_strings(run, tokenizer, texts))
        # From numbers within the run to numbers within the template.
        pieces = np.array(run.pieces)
        rows_per_run.append(
            [
                row._replace(
                    first_piece=pieces[row.first_piece],
                    last_piece=pieces[row.last_piece],
                )
                for row in cache[key]
            ]
        )
    # The row of a text is the concatenation of its runs.
    return [
        TemplateRow(*map(np.concatenate, zip(*rows, strict=True)))
        for rows in zip(*rows_per_run, strict=True)
    ]


def _special_token_ids(tokenizer: tokenizers.Tokenizer, special: str) -> np.ndarray:
    """[S] int32 ids of a special piece."""
    if special in ("bos", "close"):
        opening, closing = enclosing_tokens(tokenizer)
        return opening if special == "bos" else closing
    if special == "eos":
        return np.array([find_end_token(tokenizer)], np.int32)
    added = _added_tokens(tokenizer)
    token_id = added.get(special, tokenizer.token_to_id(special))
    if token_id is None:
        raise ValueError(
            f"the tokenizer has no added token {special!r}; it has "
            f"{_format_names(added)}"
        )
    return np.array([token_id], np.int32)


def _added_tokens(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    # {name: id}
    decoder = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in decoder.items()}


def _format_names(names: Sequence[str]) -> str:
    """The first names of a list, for an error message."""
    names = list(names)
    remaining = len(names) - MAX_LISTED
    suffix = f" and {remaining} more" if remaining > 0 else ""
    return (", ".join(names[:MAX_LISTED]) or "none") + suffix


def _encode_strings(
    run: TemplateRun, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> Iterator[TemplateRow]:
    """Tokenizes the strings of a run for each text; its pieces are numbered from 0."""
    strings_per_text = [
        [text if string is None else string for string in run.strings] for text in texts
    ]
    encodings = tokenizer.encode_batch(
        ["".join(strings) for strings in strings_per_text], add_special_tokens=False
    )
    last_index = len(run.strings) - 1
    for strings, encoding in zip(strings_per_text, encodings, strict=True):
        bounds = np.cumsum([len(string) for string in strings])  # [P] ends of strings
        start, end = np.array(encoding.offsets, np.int64).reshape(-1, 2).T  # [S] each
        # The strings that the first and the last character of a token belong to.
        first = np.searchsorted(bounds, start, side="right")
        last = np.searchsorted(bounds, np.maximum(end - 1, start), side="right")
        first, last = np.minimum(first, last_index), np.minimum(last, last_index)
        string_start = np.concatenate([[0], bounds])[last]
        token_ids = np.array(encoding.ids, np.int32)
        yield TemplateRow(token_ids, first, last, end - string_start)
