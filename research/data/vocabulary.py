"""What pre-training needs to know of a tokenizer and of the texts it has cut."""

from collections.abc import Iterable

import numpy as np
import tokenizers

from research.data import text
from research.data.document_table import DocumentTable
from research.data.pieces import end_token
from research.structs import TextInfo

MASKS = ("[MASK]", "<mask>")  # BERT's, and RoBERTa's
BLANK = "_"  # LLM2Vec's mask of tokenizers without one
CHUNK = 1 << 24  # tokens counted at once


def text_info(
    tokenizer: tokenizers.Tokenizer, tables: Iterable[DocumentTable]
) -> TextInfo:
    """The tokenizer's ids, and how often each occurs in the tables."""
    special = {
        number: token.content
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.special
    }
    masks = [number for number, name in special.items() if name in MASKS]
    vocab = tokenizer.get_vocab_size()
    counts = np.zeros(vocab, np.int64)
    for table in tables:
        for start in range(0, len(table.ids), CHUNK):
            part = table.ids[start : start + CHUNK]
            counts += np.bincount(part, minlength=vocab)
    mask_id = masks[0] if masks else None
    return TextInfo(
        vocab,
        mask_id,
        tuple(special),
        counts,
        blank=tokenizer.token_to_id(BLANK),
        end=_end(tokenizer),
        shortest=1 + sum(map(len, text.around(tokenizer))),
    )


def _end(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id of the token that ends a text, if there is one."""
    try:
        return end_token(tokenizer)
    except ValueError:
        return None
