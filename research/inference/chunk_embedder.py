"""Embeddings of document chunks: late chunking (Guenther et al. 2024) and others."""

from collections.abc import Sequence

import numpy as np

from research.inference.batching import TokenRows
from research.text.chunk_rows import ChunkedText
from research.types import MultiVectors


def make_chunk_rows(texts: Sequence[ChunkedText]) -> TokenRows:
    """The token rows of chunked texts; each span of a row is a chunk or part of one."""
    rows = [row for text in texts for row in text.rows]
    return TokenRows([row.token_ids for row in rows], [row.span_ids for row in rows])


def average_pieces(pieces: np.ndarray, texts: Sequence[ChunkedText]) -> np.ndarray:
    """Vectors [C, D] float32 of all chunks, in the order of the texts.

    The vector of a chunk that lies in several rows is the mean over its pieces,
    weighted by their numbers of tokens.

    Args:
        pieces: [P, D] vectors of the spans of `make_chunk_rows`.
        texts: The chunked texts.
    """
    # Number of tokens of each piece, and the chunk it belongs to: [P] each.
    rows = [row for text in texts for row in text.rows]
    tokens = np.concatenate([np.bincount(row.span_ids)[1:] for row in rows])
    first = np.cumsum([0, *(len(text.start) for text in texts)])
    chunk = np.concatenate(
        [
            first_chunk + row.chunk_numbers
            for first_chunk, text in zip(first, texts, strict=False)
            for row in text.rows
        ]
    )
    # Weighted means over runs of pieces of the same chunk: [C, D].
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    weights = tokens.astype(np.float32)[:, None]
    total = np.add.reduceat(weights * pieces, starts)
    return total / np.add.reduceat(weights, starts)


def make_chunk_embeddings(
    vectors: np.ndarray, texts: Sequence[ChunkedText]
) -> MultiVectors:
    """The vectors [C, D] of chunks, with their document and range of characters."""
    return MultiVectors(
        vectors,
        np.cumsum([0, *(len(text.start) for text in texts)]),
        np.concatenate([text.start for text in texts]),
        np.concatenate([text.end for text in texts]),
    )
