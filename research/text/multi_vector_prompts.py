"""Prompts for several vectors per text: those of ColBERT and of MetaEmbed."""

import string

from research.text.late_interaction import LateInteraction
from research.text.templates import Prompt, escape_braces
from research.text.tokens import Piece, Template

# Tokens of documents that ColBERT does not score.
PUNCTUATION = tuple(string.punctuation)


def colbert(
    *,
    query_marker: str = "[unused0]",
    document_marker: str = "[unused1]",
    query_prefix: str = "",
    document_prefix: str = "",
    query_length: int = 32,
    document_length: int = 180,
    expansion: str = "[MASK]",
    attends: bool = False,
    skiplist: tuple[str, ...] = PUNCTUATION,
) -> Prompt:
    """ColBERT (Khattab and Zaharia 2020): a marker before each text, longer queries.

    A query gets [MASK] tokens up to its full length, which attend to the query and are
    scored like its tokens; punctuation in documents is not scored.

    Args:
        query_marker: Token of the vocabulary after the opening token of a query; ""
            for none.
        document_marker: The same for documents.
        query_prefix: Text before a query, after the marker.
        document_prefix: The same for documents.
        query_length: Most tokens of a query; 0 for the model's maximum.
        document_length: Most tokens of a document; 0 for the model's maximum.
        expansion: Token that is added to queries; "" for none.
        attends: Whether tokens attend to the added ones.
        skiplist: Tokens of documents that are not scored.

    Raises:
        ValueError: Queries are to be longer, but have no length.
    """
    if expansion and not query_length:
        raise ValueError(
            f"the prompt's expansion is {expansion!r}, which needs a query_length"
        )

    # A marker or a text after the opening token, then the text
    def mark_text(marker: str, prefix: str) -> Template:
        return (
            Piece(special="bos", pooled=True),
            *([Piece(special=marker, pooled=True)] if marker else []),
            *([Piece(escape_braces(prefix), pooled=True)] if prefix else []),
            Piece(is_text=True, pooled=True, joined=bool(prefix)),
            Piece(special="close", pooled=True),
        )

    templates = {
        "query": (mark_text(query_marker, query_prefix),),
        "document": (mark_text(document_marker, document_prefix),),
    }
    late = LateInteraction(
        query_length, document_length, expansion, attends, tuple(skiplist)
    )
    return Prompt(templates, late_interaction=late)


def metaembed(
    *,
    queries: int = 16,
    documents: int = 64,
    token: str = "[unused{}]",
    first: int = 10,
) -> Prompt:
    """Meta tokens after each text, whose states are its vectors (Xiao et al. 2025).

    Queries and documents have their own tokens of the vocabulary, which training makes
    meta tokens. It is for the pooling `colbert`, which then gives their vectors alone.

    Args:
        queries: Number of meta tokens of a query.
        documents: The same for documents.
        token: Name of the meta tokens, with {} for their numbers; without it all are
            the same token, and differ by their positions.
        first: Number of the first meta token.
    """

    # The text, and the meta tokens that alone are pooled
    def append_tokens(start: int, count: int) -> Template:
        names = [token.replace("{}", str(start + i)) for i in range(count)]
        return (
            Piece(special="bos"),
            Piece(is_text=True),
            Piece(special="close"),
            *(Piece(special=name, pooled=True) for name in names),
        )

    templates = {
        "query": (append_tokens(first, queries),),
        "document": (append_tokens(first + queries, documents),),
    }
    return Prompt(templates)
