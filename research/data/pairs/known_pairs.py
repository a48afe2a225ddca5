"""The different queries and documents of examples, and which belong together."""

from typing import NamedTuple

import numpy as np


class NumberedPairs(NamedTuple):
    """Queries and documents, each text once, in the order in which they occur.

    Attributes:
        queries: [Q] first example of each query; of a table, index of its text.
        documents: [P] first place of each document; of a table, index of its text.
        example_queries: [n] number of each example's query.
        positives: [E, 2] query and document of every positive, example by example.
        excluded: [X, 2] further pairs that are no negatives (`list_excluded_pairs`).
    """

    queries: np.ndarray
    documents: np.ndarray
    example_queries: np.ndarray
    positives: np.ndarray
    excluded: np.ndarray


def number_pairs(
    queries: np.ndarray,
    documents: np.ndarray,
    positives: np.ndarray,
    groups: np.ndarray,
) -> NumberedPairs:
    """Numbers the different queries and documents of n examples.

    Args:
        queries: [n] key of each example's query; equal texts have equal keys.
        documents: [D] key of each document.
        positives: [E, 2] example and place among the documents of every positive.
        groups: [n] key of each example's group, or else of its query.
    """
    first_queries, example_queries = _number_keys(queries)
    first_documents, numbers = _number_keys(documents)
    owners, places = positives.T
    positives = np.stack([example_queries[owners], numbers[places]], axis=1)
    # Queries and documents with the same text
    _, *equal = np.intersect1d(
        queries[first_queries], documents[first_documents], return_indices=True
    )
    excluded = list_excluded_pairs(
        _number_keys(groups)[1], example_queries, positives, np.stack(equal, axis=1)
    )
    return NumberedPairs(
        first_queries, first_documents, example_queries, positives, excluded
    )


def list_excluded_pairs(
    groups: np.ndarray,
    example_queries: np.ndarray,
    positives: np.ndarray,
    equal: np.ndarray,
) -> np.ndarray:
    """Pairs that are no negatives, besides the positives.

    They are queries and documents of the same text, and queries with the documents of
    other queries of their group: the positives of these, and these themselves where
    they are documents, too, as texts of a class are.

    Args:
        groups: [n] number of each example's group.
        example_queries: [n] number of its query.
        positives: [E, 2] query and document of every positive.
        equal: [X, 2] queries and documents of the same text.

    Returns:
        [P, 2] query and document of each pair, each once.
    """
    known = np.unique(np.concatenate([positives, equal]), axis=0)
    pairs = [equal]
    # A group for each query leaves nothing out
    if not np.array_equal(groups, example_queries):
        # The different queries of each group, and where each query's documents begin
        members = np.unique(np.stack([groups, example_queries], axis=1), axis=0)
        starts = np.searchsorted(known[:, 0], np.arange(example_queries.max() + 2))
        for start, stop in _find_runs(members[:, 0]):
            queries = members[start:stop, 1]
            if len(queries) > 1:
                parts = [known[starts[q] : starts[q + 1], 1] for q in queries]
                documents = np.unique(np.concatenate(parts))
                grid = np.meshgrid(queries, documents, indexing="ij")
                pairs.append(np.stack(grid, axis=-1).reshape(-1, 2))
    # Each pair as one number, without those that are positives anyway
    count = known[:, 1].max() + 1
    keys, positive_keys = (
        x[:, 0] * count + x[:, 1] for x in (np.concatenate(pairs), positives)
    )
    return np.stack(np.divmod(np.setdiff1d(keys, positive_keys), count), axis=1)


def _find_runs(values: np.ndarray) -> np.ndarray:
    """[R, 2] start and end of each run of equal values."""
    edges = np.flatnonzero(np.diff(values, prepend=-1, append=-1))
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _number_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different key is first, in order, and the number of each key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return first[order], ranks[inverse]
