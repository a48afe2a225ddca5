"""The tokens of a vocabulary that a text can contain."""

from typing import NamedTuple

import tokenizers

PROBE = "«"  # put before a piece of a word, which then does not begin the text
UNDECODABLE = "\ufffd"


class VocabularyToken(NamedTuple):
    """A token and the text that has it.

    Attributes:
        token_id: Its id.
        text: The text that is tokenized into this token alone.
    """

    token_id: int
    text: str


def list_reachable_tokens(tokenizer: tokenizers.Tokenizer) -> list[VocabularyToken]:
    """The tokens whose decoded text is tokenized into this token again.

    Left out are white space, bytes that are no text by themselves, and tokens that no
    text leads to. Tokenizers that put a space before a text are also tried with a
    character before the text, so that pieces of words are found.

    Args:
        tokenizer: Tokenizer; its special tokens count, if they can be written.
    """
    # The text of every token, as a decoder writes it.
    texts = {
        token_id: tokenizer.decode([token_id], skip_special_tokens=False)
        for token_id in range(tokenizer.get_vocab_size())
    }
    texts = {
        token_id: text
        for token_id, text in texts.items()
        if text.strip() and UNDECODABLE not in text
    }
    # Tokenize all texts alone, and again with the probe before them.
    alone = _encode(tokenizer, list(texts.values()))
    probe = _encode(tokenizer, [PROBE])[0]
    after_probe = [None] * len(texts)
    if _has_space_sign(tokenizer):
        after_probe = _encode(tokenizer, [PROBE + text for text in texts.values()])
    # One of the two ways must lead back to the token.
    return [
        VocabularyToken(token_id, text)
        for (token_id, text), ids, probed in zip(
            texts.items(), alone, after_probe, strict=True
        )
        if ids == [token_id] or probed == [*probe, token_id]
    ]


def _has_space_sign(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the token of a word that begins a text has a sign for a space."""
    first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
    return bool(first) and first[0][:1] in ("▁", "Ġ")


def _encode(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
