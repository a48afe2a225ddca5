"""The pieces of templates, and their tokens."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from research.text.tokenization import enclosing_tokens

PST = "<PST>"  # the token of token prepending (Fu et al. 2024)
# End tokens in the order in which they are looked for.
END_TOKENS = (
    *("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>"),
    *("<|eot_id|>", "<end_of_turn>", "<|end|>", "[EOS]", "[SEP]"),
)
ID_PIECES = ("bos", "eos", "close")  # pieces that are ids whatever stands beside them
# {{ and }} are braces, as in str.format; a single brace is itself.
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+!?)\}")


class Piece(NamedTuple):
    """A part of a template.

    Attributes:
        text: literal text, which may hold {instruction}; {{ and }} are braces.
        slot: the text goes here, cut to fit.
        special: "bos" and "close" are what the tokenizer itself puts before and after a
            text, "eos" is its end token; else the name of an added token such as <PST>.
        pooled: its tokens count in pooling.
        joined: it goes on where the piece before ends: the two are tokenised as one
            string. A piece that is not joined is tokenised by itself.
    """

    literal: str = ""
    is_text: bool = False
    special: str = ""
    pooled: bool = False
    joined: bool = False


Template = tuple[Piece, ...]


class TemplateRun(NamedTuple):
    """Pieces that become tokens together: P strings end to end, or ids.

    Attributes:
        pieces: [P] their numbers in the template.
        strings: what each says; None where the text goes.
        ids: [S] int32, the tokens of a piece that needs no tokenising, else None.
    """

    pieces: list[int]
    strings: list[str | None]
    token_ids: np.ndarray | None


class TemplateRow(NamedTuple):
    """The tokens of a text in a template, each array [S].

    Attributes:
        ids: int32.
        first, last: the piece that a token begins and ends in.
        end: the character of the text that a token ends before, if it ends in a slot.
    """

    token_ids: np.ndarray
    first_piece: np.ndarray
    last_piece: np.ndarray
    text_end: np.ndarray


def add_special_token(
    tokenizer: tokenizers.Tokenizer, name: str = PST
) -> tuple[tokenizers.Tokenizer, int]:
    """A copy of a tokenizer that knows a token more, and its id: the old size."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens([tokenizers.AddedToken(name, normalized=False)])
    return copy, copy.token_to_id(name)


def find_end_token(tokenizer: tokenizers.Tokenizer) -> int:
    """The id of the token that ends a text.

    It is the one that the tokenizer itself puts after a text, if that is one token,
    else the first of ENDS among its special tokens.

    Raises:
        ValueError: there is none.
    """
    closing = enclosing_tokens(tokenizer)[1]
    if len(closing) == 1:
        return int(closing[0])
    added = _added(tokenizer)
    found = [added[name] for name in END_TOKENS if name in added]
    if not found:
        raise ValueError(
            f"the tokenizer has no end token; looked for {', '.join(END_TOKENS)} among its "
            f"added tokens {_listed(added)}"
        )
    return found[0]


def group_pieces(
    template: Template, tokenizer: tokenizers.Tokenizer, instruction: str
) -> list[TemplateRun]:
    """The pieces of a template, together those that become tokens together.

    Raises:
        ValueError: there is no slot, a placeholder that is not {instruction}, no
            instruction for that, or a token that the tokenizer does not have.
    """
    if not any(piece.is_text for piece in template):
        said = "".join(piece.literal or f"<{piece.special}>" for piece in template)
        raise ValueError(f"the template {said!r} has no place for a text")
    runs = []
    for number, piece in enumerate(template):
        said = None if piece.is_text else fill_placeholders(piece.literal, instruction)
        if piece.special in ID_PIECES:
            runs.append(TemplateRun([number], [], _special(tokenizer, piece.special)))
            continue
        if piece.special:
            _special(tokenizer, piece.special)
            said = piece.special
        if piece.joined and runs and runs[-1].token_ids is None:
            runs[-1].pieces.append(number)
            runs[-1].strings.append(said)
        else:
            runs.append(TemplateRun([number], [said], None))
    return runs


def fill_placeholders(text: str, instruction: str) -> str:
    """Literal text with its placeholders replaced.

    Raises:
        ValueError: one is not {instruction}, or there is no instruction.
    """

    def put(match: re.Match) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] != "instruction":
            raise ValueError(
                f"{match[0]} in the template {text!r} would be embedded as it stands; "
                "known are {text}, {text!}, {instruction}, {eos} and {close} (in a "
                "Piece only {instruction}), and {{ is a brace"
            )
        if not instruction:
            raise ValueError(f"the template {text!r} needs an instruction")
        return instruction

    return PLACEHOLDER.sub(put, text)


def encode_runs(
    runs: Sequence[TemplateRun], tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> list[TemplateRow]:
    """The tokens of each text in a template, uncut."""
    parts, known = [], {}
    for run in runs:
        if run.token_ids is not None:
            owner = np.full(len(run.token_ids), run.pieces[0])
            parts.append(
                [TemplateRow(run.token_ids, owner, owner, owner * 0)] * len(texts)
            )
            continue
        key = tuple(run.strings)  # the copies of a text are often encoded alike
        if key not in known:
            known[key] = list(_strings(run, tokenizer, texts))
        parts.append(
            [
                row._replace(
                    first_piece=np.array(run.pieces)[row.first_piece],
                    last_piece=np.array(run.pieces)[row.last_piece],
                )
                for row in known[key]
            ]
        )
    return [
        TemplateRow(*map(np.concatenate, zip(*row, strict=True)))
        for row in zip(*parts, strict=True)
    ]


def _special(tokenizer: tokenizers.Tokenizer, name: str) -> np.ndarray:
    """[S] int32, the tokens of a piece by its `special`."""
    if name in ("bos", "close"):
        return enclosing_tokens(tokenizer)[name == "close"]
    if name == "eos":
        return np.array([find_end_token(tokenizer)], np.int32)
    added = _added(tokenizer)
    if name not in added:
        raise ValueError(
            f"the tokenizer has no added token {name!r}; it has {_listed(added)}"
        )
    return np.array([added[name]], np.int32)


def _added(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    known = tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in known.items()}


def _listed(names: Sequence[str]) -> str:
    """The first eight of some names, for an error."""
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def _strings(
    run: TemplateRun, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> Iterator[TemplateRow]:
    """The rows of texts in one run, whose pieces count from 0."""
    whole = [
        [text if string is None else string for string in run.strings] for text in texts
    ]
    encodings = tokenizer.encode_batch(
        ["".join(strings) for strings in whole], add_special_tokens=False
    )
    for strings, encoding in zip(whole, encodings, strict=True):
        bounds = np.cumsum([len(string) for string in strings])
        start, end = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        most = len(strings) - 1
        first = np.minimum(np.searchsorted(bounds, start, side="right"), most)
        final = np.maximum(end - 1, start)
        last = np.minimum(np.searchsorted(bounds, final, side="right"), most)
        begin = np.concatenate([[0], bounds])[last]
        yield TemplateRow(np.array(encoding.ids, np.int32), first, last, end - begin)
