"""The different queries and documents of a tokenized source, and which are pairs."""

import numpy as np

from research.data.packing import token_offsets
from research.data.pairs.known_pairs import NumberedPairs, number_pairs
from research.data.pairs.pair_cache import PairTable
from research.data.pairs.pair_rows import find_documents


def number_table(table: PairTable) -> NumberedPairs:
    """Numbers the different queries and documents of a table."""
    keys = _join_hashes(table.text_hashes)  # [T]
    documents = find_documents(table)
    # [E] example and text of each positive, which follow the query
    owners = np.repeat(np.arange(len(table.query_text)), table.num_positives)
    texts = table.query_text[owners] + 1 + token_offsets(table.num_positives)
    positives = np.stack([owners, np.searchsorted(documents, texts)], axis=1)
    groups = _join_hashes(table.group_hashes)
    pairs = number_pairs(keys[table.query_text], keys[documents], positives, groups)
    return pairs._replace(
        queries=table.query_text[pairs.queries], documents=documents[pairs.documents]
    )


def _join_hashes(hashes: np.ndarray) -> np.ndarray:
    """[N] uint64 of hashes in two halves, [N, 2] uint32."""
    high, low = hashes.astype(np.uint64).T
    return high << np.uint64(32) | low
