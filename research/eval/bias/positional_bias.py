"""Positional bias: how much an edit moves an embedding, by where the edit is.

Lee et al. 2024, "Quantifying Positional Biases in Text Embedding Models".
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from research.data.corpus import read_corpus
from research.eval.bias.documents import (
    Document,
    check_count,
    insert_text,
    join_pieces,
    make_documents,
    make_word_tokenizer,
    remove_tokens,
    rotate_document,
    truncate_document,
)
from research.progress import show_note
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator

POSITIONS = {"start": 0.0, "middle": 0.5, "end": 1.0}
EDITS = {"insert": "Inserted", "remove": "Removed"}
SIZES = (0.05, 0.1, 0.25, 0.5)
# A ratio of changes at both ends that only unread ends have.
UNREAD = 1e6


def positional_bias(
    *, data: str, documents: int = 32, words: int = 100, seed: int = 0
) -> Evaluator:
    """The bias of a model towards the start of documents, as an evaluator.

    Args:
        data: Texts, as for a corpus.
        documents: Number of documents that are edited.
        words: Length of the documents. With an insertion, which adds half of it, they
            should not exceed the model's maximum length.
        seed: Seed of the choice of texts.

    Returns:
        embed -> {"start_over_end_insert", "start_over_end_remove"}: the mean change of
        an embedding by edits at the start divided by that by edits at the end, of
        rotated documents; 1 is no bias.

    Raises:
        FileNotFoundError, ValueError: The texts are missing or too few.
    """
    check_count(range(documents), "documents")
    # Words, not tokens: the texts are the same for every model.
    texts = list(dict.fromkeys(read_corpus(data)[1]))
    pool = make_documents(
        texts, make_word_tokenizer(), length=words, count=2 * documents, seed=seed
    )
    pool = [truncate_document(document, words) for document in pool]

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        record = measure_positional_bias(embed, pool[::2], pool[1::2], seed=seed)
        edits = record["rotated"]
        ratios = {
            f"start_over_end_{kind}": edits[kind]["start_over_end"] for kind in EDITS
        }
        if max(ratios.values()) > UNREAD:
            show_note(
                f"positional_bias: edits at the end change nothing: texts of {words} "
                "words may be longer than what the model reads"
            )
        return ratios

    return evaluate


def measure_positional_bias(
    embed: EmbedFn,
    documents: Sequence[Document],
    fillers: Sequence[Document],
    *,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
) -> dict[str, Any]:
    """Cosine between documents before and after text is inserted or removed.

    Measured in two variants. "as_written" includes a bias of the documents themselves,
    whose beginnings may be the most informative part. In "rotated", each document
    starts at a random word and ends with the part before it, so that any difference
    between positions is due to the model.

    Args:
        embed: Embed function that returns [N, D].
        documents: N documents to edit. With an insertion they should not exceed the
            model's maximum length.
        fillers: N further documents, whose beginnings are inserted.
        sizes: Sizes of the edits, as fractions of the document's tokens.
        seed: Seed of the rotations.

    Returns:
        A record of "documents", their number; "tokens", their mean length; "sizes"; and
        for "as_written" and "rotated", for "insert" and "remove": the mean "cosine" and
        its "standard_error" by position ("start", "middle", "end") and size,
        "gap_points", 100 times the cosine after an edit at the end minus that after one
        at the start, by size, and "start_over_end", the mean change (1 - cosine) by
        edits at the start divided by that by edits at the end, which is 1 without bias.

    Raises:
        ValueError: There are too few documents.
    """
    check_count(documents, "documents")
    # Each document is rotated by a random share of its length.
    shifts = np.random.default_rng(seed).random(len(documents))
    rotated = list(map(rotate_document, documents, shifts))
    return {
        "documents": len(documents),
        "tokens": float(np.mean([d.sizes.sum() for d in documents])),
        "sizes": list(sizes),
        "as_written": _measure_edits(embed, documents, fillers, sizes),
        "rotated": _measure_edits(embed, rotated, fillers, sizes),
    }


def _measure_edits(
    embed: EmbedFn,
    documents: Sequence[Document],
    fillers: Sequence[Document],
    sizes: Sequence[float],
) -> dict[str, Any]:
    """Cosines by kind, position and size of the edit; see measure_positional_bias."""
    # Embed the documents and all their edited versions in one call.
    edits = list(product(EDITS, POSITIONS, sizes))
    texts = [join_pieces(document) for document in documents]
    for edit in edits:
        texts += map(partial(_edit_document, *edit), documents, fillers)
    x = l2_normalize_rows(embed(texts, "document"))
    x = x.reshape(1 + len(edits), len(documents), -1)  # [1 + edits, N, D]
    cosines = np.sum(x[0] * x[1:], -1)  # [edits, N], to the unedited documents
    cosines = cosines.reshape(len(EDITS), len(POSITIONS), len(sizes), -1)
    # Statistics over the documents.
    record = {}
    for kind, values in zip(EDITS, cosines, strict=True):
        mean = values.mean(-1)  # [positions, sizes]
        error = values.std(-1, ddof=1) / np.sqrt(len(documents))
        change = dict(zip(POSITIONS, 1 - mean.mean(-1), strict=True))
        gap = 100 * (mean[-1] - mean[0])  # [sizes]
        record[kind] = {
            "cosine": dict(zip(POSITIONS, mean.tolist(), strict=True)),
            "standard_error": dict(zip(POSITIONS, error.tolist(), strict=True)),
            "gap_points": gap.tolist(),
            "start_over_end": float(change["start"] / max(change["end"], 1e-12)),
        }
    return record


def _edit_document(
    kind: str, position: str, size: float, document: Document, filler: Document
) -> str:
    tokens = round(size * int(document.sizes.sum()))
    if kind == "remove":
        return remove_tokens(document, tokens, POSITIONS[position])
    return insert_text(
        document, join_pieces(truncate_document(filler, tokens)), POSITIONS[position]
    )
