"""Clusters of pairs by their vectors."""

import numpy as np

from research.transforms.clustering import cluster_pairs


def corners(groups, seed):
    noise = np.random.default_rng(seed).normal(0, 0.02, (len(groups), 6))
    return np.eye(6)[groups] * 3 + noise  # lengths do not matter


def is_same_partition(clusters, groups):
    pairs = set(zip(clusters.tolist(), groups.tolist(), strict=True))
    return len(pairs) == len(set(groups.tolist())) == len(set(clusters.tolist()))


def test_near_queries_are_a_cluster():
    groups = np.arange(40) % 4
    clusters = cluster_pairs(corners(groups, 0), cluster_size=10, seed=1)
    assert clusters.dtype == np.int32 and is_same_partition(clusters, groups)


def test_pairs_are_near_by_both_texts_in_either_order():
    """Pairs of the same two topics, with query and document swapped in half of them."""
    topics = np.arange(24) % 2
    swapped = np.arange(24) // 2 % 2
    query = np.where(swapped, 2 * topics + 1, 2 * topics)
    document = np.where(swapped, 2 * topics, 2 * topics + 1)
    vectors = corners(query, 0), corners(document, 1)
    apart = cluster_pairs(*vectors, cluster_size=6)
    assert is_same_partition(apart, query)
    assert cluster_pairs(*vectors, cluster_size=100).max() == 0
