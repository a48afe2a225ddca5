"""Packing of documents into pre-training rows, and the table of all row layouts.

A layout says for every step of a source which texts its batch holds, and where. The
other entries of ROW_LAYOUTS are defined in `decomposition` and `span_rows`.
"""

import numpy as np

from research.data import sampling
from research.data.decomposition import decompose_documents
from research.data.document_cache import DocumentTable, last_word_start
from research.data.packing import (
    BatchLayout,
    LayoutFn,
    RowShape,
    best_fit,
    token_offsets,
)
from research.data.span_rows import draw_spans
from research.types import max_documents


def pack_documents(
    table: DocumentTable, shape: RowShape, *, texts: int | None = None
) -> LayoutFn:
    """Rows of several documents each; only documents longer than a row are split.

    Documents are split between words. The pieces are packed once, by best fit (Ding et
    al. 2024, "Fewer truncations improve language modeling"), at most
    types.max_documents(S) into a row. Every epoch has its own order of the rows; its
    last batch is filled up with rows of the next epoch.

    Args:
        table: Tokenized documents.
        shape: Shape of a batch.
        texts: Maximum number of texts in a row; 1 pads every text to a row of its own.
    """
    most = max_documents(shape.length)
    if texts is not None and not 1 <= texts <= most:
        raise ValueError(
            f"row_layout.texts is {texts}; allowed: 1 ... {most} in a row of "
            f"{shape.length}"
        )
    first_token, num_tokens = split_documents(table, shape.length - shape.num_special)
    packing = best_fit(num_tokens + shape.num_special, shape.length, texts or most)
    if packing.rows < shape.rows:
        raise ValueError(
            f"its documents fill {packing.rows} rows of {shape.length} tokens, fewer "
            f"than one batch of {shape.rows}"
        )
    # Sort the pieces by row; row r has pieces by_row[begin[r] : begin[r] + count[r]].
    by_row = np.argsort(packing.row, kind="stable")
    count = np.bincount(packing.row)
    begin = np.cumsum(count) - count
    permute = sampling.cache_permutations(2)

    def layout(source_step: int) -> BatchLayout:
        # [R] packed rows of this batch, then the M pieces in them.
        rows = sampling.draw_examples(
            permute, shape.seed, source_step, shape.rows, packing.rows
        )
        row_counts = count[rows]
        pieces = by_row[np.repeat(begin[rows], row_counts) + token_offsets(row_counts)]
        return BatchLayout(
            first_token=first_token[pieces],
            num_tokens=num_tokens[pieces],
            row=np.repeat(np.arange(shape.rows), row_counts),
            segment_ids=packing.segment_ids[pieces],
            start=packing.start[pieces],
            rows=shape.rows,
            length=shape.length,
        )

    return layout


def split_documents(
    table: DocumentTable, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits documents into pieces of at most `max_tokens` tokens, between words.

    Returns:
        ([M] first token of each piece, [M] number of its tokens).
    """
    # Each round cuts one piece off every document that has tokens left.
    begin, end = table.starts[:-1], table.starts[1:]
    piece_starts, piece_ends = [], []
    while len(begin):
        cut = np.minimum(begin + max_tokens, end)
        continues = cut < end
        cut[continues] = last_word_start(table, begin[continues], cut[continues])
        piece_starts.append(begin)
        piece_ends.append(cut)
        begin, end = cut[continues], end[continues]
    first_token = np.concatenate(piece_starts)
    return first_token, np.concatenate(piece_ends) - first_token


# {name in the config's row_layout: function layout(table, shape) -> LayoutFn}
ROW_LAYOUTS = {
    "packed": pack_documents,
    "decomposed": decompose_documents,
    "spans": draw_spans,
}
