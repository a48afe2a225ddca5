"""The different queries and documents of a tokenized source, and which are pairs."""

from typing import NamedTuple

import numpy as np

from research.data.packing import token_offsets
from research.data.pairs.known_pairs import number_pairs
from research.data.pairs.pair_cache import PairTable
from research.data.pairs.pair_rows import find_documents


class TablePairs(NamedTuple):
    """Queries and documents of a table, each text once.

    Attributes:
        query_texts: [Q] index in the table of each query, in the order of the table.
        passage_texts: [P] the same for documents.
        example_queries: [n] number of each example's query.
        positives: [E, 2] query and document of every positive, example by example.
        excluded: [P, 2] further pairs that are no negatives (`list_excluded_pairs`).
    """

    query_texts: np.ndarray
    passage_texts: np.ndarray
    example_queries: np.ndarray
    positives: np.ndarray
    excluded: np.ndarray


def number_table(table: PairTable) -> TablePairs:
    """Numbers the different queries and documents of a table."""
    keys = _join_hashes(table.text_hashes)  # [T]
    documents = find_documents(table)
    # [E] example and text of each positive, which follow the query
    owners = np.repeat(np.arange(len(table.query_text)), table.num_positives)
    texts = table.query_text[owners] + 1 + token_offsets(table.num_positives)
    positives = np.stack([owners, np.searchsorted(documents, texts)], axis=1)
    groups = _join_hashes(table.group_hashes)
    pairs = number_pairs(keys[table.query_text], keys[documents], positives, groups)
    return TablePairs(
        table.query_text[pairs.first_queries],
        documents[pairs.first_documents],
        *pairs[2:],
    )


def _join_hashes(hashes: np.ndarray) -> np.ndarray:
    """[N] uint64 of hashes in two halves, [N, 2] uint32."""
    high, low = hashes.astype(np.uint64).T
    return high << np.uint64(32) | low
