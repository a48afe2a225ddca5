"""Queries and documents that belong together, so that they are no negatives."""

import numpy as np


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
