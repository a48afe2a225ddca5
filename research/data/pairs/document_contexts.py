"""Tokens of documents that are read within their contexts, and pooled alone.

A chunk of a longer text is encoded with the text around it, and its vector is pooled
from the tokens of the chunk, as late chunking does in embedding (`text.chunking.Late`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import tokenizers

from research.data.examples import Example
from research.text.chunk_rows import tokenize_passages


def tokenize_in_contexts(
    tokenizer: tokenizers.Tokenizer,
    examples: Sequence[Example],
    token_ids: Sequence[np.ndarray],
    *,
    prompt: str,
    max_length: int,
    label: Callable[[int], str],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens and pooling masks of examples whose documents have contexts.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        examples: The examples.
        token_ids: Token ids of their T texts alone: of each example the query, the
            positives and the negatives.
        prompt: Prefix of the contexts.
        max_length: Maximum number of tokens; what is far from the document is cut.
        label: Function from the index of an example to its name in error messages.

    Returns:
        Token ids and pooling mask [S] of each of the T texts. Those of queries and of
        documents with nothing around them are as they were.

    Raises:
        ValueError: An example has no contexts, or a document has no tokens of its own.
    """
    token_ids = list(token_ids)
    masks = [np.ones(len(ids), bool) for ids in token_ids]
    # The documents with something around them, by their index among the T texts
    numbers, owners, passages, index = [], [], [], 0
    for owner, example in enumerate(examples):
        documents = (*example.positives, *example.negatives)
        if len(example.contexts) != len(documents):
            raise ValueError(
                f"{label(owner)} has {len(example.contexts)} contexts for "
                f"{len(documents)} documents, but other rows have one for each"
            )
        pairs = zip(documents, example.contexts, strict=True)
        for place, (text, (before, after)) in enumerate(pairs, index + 1):
            if before or after:
                numbers.append(place)
                owners.append(owner)
                passages.append((text, (before, after)))
        index += 1 + len(documents)
    # Each with its prompt, cut around the document
    windows = tokenize_passages(
        *(tokenizer, passages),
        prompt=prompt,
        max_length=max_length,
        label=lambda i: label(owners[i]),
    )
    for number, row, mask in zip(numbers, *windows, strict=True):
        token_ids[number], masks[number] = row, mask
    return token_ids, masks
