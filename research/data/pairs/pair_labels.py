"""Labels of a batch of pairs: scores, ids of equal texts, and a teacher's vectors."""

import numpy as np

from research.data.pairs.pair_rows import PairSourceState
from research.types import Labels, LossName


def read_labels(
    source: PairSourceState, examples: np.ndarray, texts: np.ndarray
) -> Labels:
    """The labels of some pairs of a source.

    Args:
        source: The source.
        examples: [B] indices of the examples.
        texts: [B, 1+K] indices of each query and its documents.
    """
    table = source.table
    queries, documents = texts[:, 0], texts[:, 1:].reshape(-1)
    # A teacher's scores of all documents, or the grade of each pair
    score = None
    if table.has_text_scores:
        score = table.text_scores[texts[:, 1:]]  # [B, K]
    elif table.has_scores:
        score = table.scores[examples]  # [B]
    vectors = [
        lookup and lookup.take_texts(numbers)
        for lookup, numbers in (
            (source.query_vectors, queries),
            (source.document_vectors, documents),
        )
    ]
    return Labels(
        score=score,
        query_id=table.group_hashes[examples],
        document_id=table.text_hashes[documents],
        loss=LossName(source.loss) if source.loss else None,
        query_vector=vectors[0],
        document_vector=vectors[1],
    )
