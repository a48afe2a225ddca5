"""Walks from query to query by shared negatives: batches whose texts are near (BiDR).

Xiao et al. 2022, locality-centric sampling. Queries and their mined negatives are a
bipartite graph. A walk goes from a query to those that have one of its sampled
negatives, too. The authors' code looks for these among the negatives of ranks 200 to
400, and samples from the first 200; here both are all negatives of the data.
"""

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from research.config_sections import bind_call, parse_call
from research.data.pairs.pair_cache import PairTable
from research.data.sampling import Seed


class NegativeGraph(NamedTuple):
    """The negatives of n queries, and which queries have a document as a negative.

    Attributes:
        first_text: [n] int64 index of the first text of each query's documents, which
            are its positives and then its negatives.
        num_positives: [n] int64 number of its positives.
        num_negatives: [n] int64 number of its negatives.
        documents: [T] int64 number of each text as a document; equal texts are one.
        owners: [E] int64 the queries that have document 0 as a negative, those that
            have document 1, and so on.
        starts: [D+1] int64 where the queries of each document begin among them.
    """

    first_text: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray
    documents: np.ndarray
    owners: np.ndarray
    starts: np.ndarray

    def list_texts(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts of a query's positives, and those of its negatives."""
        first, count = self.first_text[query], self.num_positives[query]
        texts = np.arange(first, first + count + self.num_negatives[query])
        return texts[:count], texts[count:]

    def find_queries(self, text: int) -> np.ndarray:
        """The queries that have this text as a negative."""
        number = self.documents[text]
        return self.owners[self.starts[number] : self.starts[number + 1]]


def build_graph(table: PairTable) -> NegativeGraph:
    """The graph of a table's queries and negatives."""
    # Equal texts have equal hashes, which are one number each
    hashes = np.ascontiguousarray(table.text_hashes).view(np.uint64)[:, 0]
    _, documents = np.unique(hashes, return_inverse=True)
    # [E] the negatives of all queries, and their queries
    counts = table.num_negatives
    queries = np.repeat(np.arange(len(counts)), counts)
    offsets = np.arange(len(queries)) - (np.cumsum(counts) - counts)[queries]
    texts = (table.query_text + 1 + table.num_positives)[queries] + offsets
    # Each query of a document once, in the order of the documents
    edges = np.unique(np.stack([documents[texts], queries], axis=1), axis=0)
    starts = np.searchsorted(edges[:, 0], np.arange(documents.max() + 2))
    return NegativeGraph(
        *(table.query_text + 1, table.num_positives, counts),
        *(documents, edges[:, 1], starts),
    )


def random_walk(
    graph: NegativeGraph, count: int, rng: np.random.Generator, *, length: int = 0
) -> np.ndarray:
    """An order of all queries, in which the next one is the last that was found.

    Args:
        graph: The queries and their negatives.
        count: K-1, the number of negatives that are sampled for each query, of those
            that its walk does not have yet if there are enough.
        rng: Source of the random numbers.
        length: Number of queries after which a walk ends and another one begins at a
            random query; 0 for when none is left that shares a negative.

    Returns:
        [n, K] int64 each query once, with the texts of its sampled negatives.
    """
    return _walk(graph, count, rng, length, deque.pop)


def snow_sample(
    graph: NegativeGraph, count: int, rng: np.random.Generator, *, length: int = 0
) -> np.ndarray:
    """As `random_walk`, but the next query is the first one that was found."""
    return _walk(graph, count, rng, length, deque.popleft)


WALKS = {"random_walk": random_walk, "snow_sample": snow_sample}


def cache_walks(
    table: PairTable, count: int, walk: str, max_cached: int
) -> Callable[[Seed, int], np.ndarray]:
    """Makes a function (seed, size) -> [size, K], the queries and negatives of a walk.

    Args:
        table: Texts of the source.
        count: K-1, the number of negatives that a step has of a query.
        walk: Call of one of WALKS, such as "random_walk(length=64)".
        max_cached: Number of walks that are kept in memory.

    Raises:
        ValueError: There is no such walk, or there are no negatives to go by.
    """
    if not count:
        raise ValueError(f"walk {walk} goes by hard negatives, of which there are none")
    graph = build_graph(table)
    # A mistake in the call is found before the first step
    build_walk = bind_call(WALKS, parse_call(walk), graph, count)

    @lru_cache(maxsize=max_cached)
    def walk_examples(seed: Seed, size: int) -> np.ndarray:
        del size  # all of the table's
        return build_walk(rng=np.random.default_rng(seed))

    return walk_examples


def _walk(
    graph: NegativeGraph,
    count: int,
    rng: np.random.Generator,
    length: int,
    take_next: Callable[[deque], int],
) -> np.ndarray:
    size = len(graph.first_text)
    starts = iter(rng.permutation(size).tolist())
    is_placed = np.zeros(size, bool)
    walk = np.empty((size, 1 + count), np.int64)
    found, documents = deque(), set()  # of the walk so far
    for place in range(size):
        if length and place % length == 0:
            found.clear()
            documents.clear()
        # The next query that was found, or a random one
        query = -1
        while found and (query < 0 or is_placed[query]):
            query = take_next(found)
        if query < 0 or is_placed[query]:
            query = next(number for number in starts if not is_placed[number])
        is_placed[query] = True

        # Its negatives in random order, those that the walk has at the end
        positives, negatives = graph.list_texts(query)
        documents.update(graph.documents[positives].tolist())
        negatives = rng.permutation(negatives)
        is_known = [x in documents for x in graph.documents[negatives].tolist()]
        negatives = negatives[np.argsort(is_known, kind="stable")][:count]
        documents.update(graph.documents[negatives].tolist())
        walk[place] = query, *negatives

        # The queries that share one of them, in random order
        for text in negatives:
            owners = graph.find_queries(text)
            found.extend(rng.permutation(owners[~is_placed[owners]]).tolist())
    return walk
