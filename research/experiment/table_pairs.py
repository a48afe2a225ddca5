"""The different queries and documents of a tokenized source, and which are pairs."""

from typing import NamedTuple

import numpy as np

from research.data.packing import token_offsets
from research.data.pairs.known_pairs import list_excluded_pairs
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
    first, example_queries = _number_keys(keys[table.query_text])
    query_texts = table.query_text[first]
    documents = find_documents(table)
    first, numbers = _number_keys(keys[documents])
    passage_texts = documents[first]
    # [E] example and document of each positive, which follow the query
    owners = np.repeat(np.arange(len(example_queries)), table.num_positives)
    texts = table.query_text[owners] + 1 + token_offsets(table.num_positives)
    passages = np.empty(len(keys), np.int64)
    passages[documents] = numbers
    positives = np.stack([example_queries[owners], passages[texts]], axis=1)
    # Queries and documents with the same text
    _, *equal = np.intersect1d(
        keys[query_texts], keys[passage_texts], return_indices=True
    )
    groups = _number_keys(_join_hashes(table.group_hashes))[1]
    excluded = list_excluded_pairs(
        groups, example_queries, positives, np.stack(equal, axis=1)
    )
    return TablePairs(query_texts, passage_texts, example_queries, positives, excluded)


def _join_hashes(hashes: np.ndarray) -> np.ndarray:
    """[N] uint64 of hashes in two halves, [N, 2] uint32."""
    high, low = hashes.astype(np.uint64).T
    return high << np.uint64(32) | low


def _number_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different key is first, in order, and the number of each key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return first[order], ranks[inverse]
