"""Tokens for late interaction: longer queries, document tokens that do not score."""

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers


class LateInteraction(NamedTuple):
    """What is done to the tokens of queries and documents (ColBERT).

    Attributes:
        query_length: Most tokens of a query; 0 for the model's maximum.
        document_length: Most tokens of a document; 0 for the model's maximum.
        expansion: Token that is added to a query until it has `query_length` tokens;
            "" adds none.
        attends: Whether tokens attend to the added ones.
        skiplist: Tokens of documents that are not scored; those that the tokenizer does
            not have are left out.
    """

    query_length: int = 32
    document_length: int = 180
    expansion: str = "[MASK]"
    attends: bool = False
    skiplist: tuple[str, ...] = tuple(string.punctuation)

    def find_length(self, role: str, max_length: int) -> int:
        """Most tokens of a text of a role, in a model of so many."""
        length = self.query_length if role == "query" else self.document_length
        return min(length or max_length, max_length)

    def find_unattended(self, tokenizer: tokenizers.Tokenizer) -> int:
        """Id of the token that no token attends to; -1 for none."""
        if not self.expansion or self.attends:
            return -1
        return find_token(tokenizer, self.expansion)


def prepare_tokens(
    late: LateInteraction,
    tokenizer: tokenizers.Tokenizer,
    role: str,
    token_ids: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    length: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lengthens queries, or takes tokens of documents out of the scoring.

    Args:
        late: What is done.
        tokenizer: Tokenizer of the model.
        role: "query", or "document" or any other.
        token_ids: N arrays [S] int32, of at most `length` tokens.
        masks: N arrays [S] bool, whether a token is scored.
        length: Number of tokens of a longer query.

    Returns:
        The new token ids and masks.

    Raises:
        ValueError: The tokenizer does not have the token that lengthens queries.
    """
    # Other roles are documents too
    if role != "query":
        ids = [tokenizer.token_to_id(token) for token in late.skiplist]
        skipped = np.array([i for i in ids if i is not None], np.int32)
        masks = [
            mask & ~np.isin(row, skipped)
            for row, mask in zip(token_ids, masks, strict=True)
        ]
        return list(token_ids), masks
    # Added tokens are scored, whether or not they are attended to
    if not late.expansion:
        return list(token_ids), list(masks)
    token = find_token(tokenizer, late.expansion)

    # All queries get the same number of tokens
    def extend(row, value):
        return np.pad(row, (0, length - len(row)), constant_values=value)

    return (
        [extend(row, token) for row in token_ids],
        [extend(mask, True) for mask in masks],
    )


def find_token(tokenizer: tokenizers.Tokenizer, token: str) -> int:
    """Id of a token of the vocabulary.

    Raises:
        ValueError: The tokenizer does not have it.
    """
    if (token_id := tokenizer.token_to_id(token)) is None:
        raise ValueError(f"the tokenizer has no token {token!r} of the prompt")
    return token_id
