"""Hard negatives: passages near a query that do not belong to it, by exact search.

With the same rules, they are those of `mine_hard_negatives` of sentence-transformers
6.2, without passages whose text is the query's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import chex
import numpy as np

from research.inference.embedder import Embeddings
from research.inference.mining_rules import (
    MiningRules,
    count_most,
    drop_candidates,
    fill_negatives,
    find_known_pairs,
    select_negatives,
)
from research.inference.search import rank_documents
from research.inference.similarity import (
    check_similarity,
    count_texts,
    embedding_kind,
    score_candidates,
    take_texts,
)
from research.progress import show_progress
from research.transforms.normalize import l2_normalize_rows

# Pairs of vectors that are scored at a time; more would only take memory.
PAIRS_PER_STEP = 65_536
# rescore(pairs [P, 2] of indices of queries and passages) -> scores [P].
Rescore = Callable[[np.ndarray], np.ndarray]


class Negatives(NamedTuple):
    """The negatives of Q queries, from the best one.

    Attributes:
        passages: [Q, N] int64 indices of passages; -1 where a query has fewer.
        scores: [Q, N] float32 their scores; -inf where a query has fewer.
        missing: [Q] number of negatives for which there was no candidate; with `fill`,
            the last ones of a row are random passages.
        positive_scores: [P] float32 scores of the known pairs.
        candidates: Number of candidates of all queries.
        dropped: {threshold: number of candidates that it left out}.
    """

    passages: np.ndarray
    scores: np.ndarray
    missing: np.ndarray
    positive_scores: np.ndarray
    candidates: int
    dropped: Mapping[str, int]


def mine_negatives(
    queries: Embeddings,
    passages: Embeddings,
    positives: np.ndarray,
    rules: MiningRules,
    *,
    excluded: np.ndarray | None = None,
    similarity: str = "cosine",
    rescore: Rescore | None = None,
    seed: int | str = 0,
) -> Negatives:
    """The hard negatives of each query, from the passages nearest to it.

    In a run of several processes, all of them call this with the same arguments, and
    all get the same result.

    Args:
        queries: Embeddings of Q different queries.
        passages: Embeddings of N different passages, of the same kind.
        positives: [P, 2] int pairs of a query and a passage that belongs to it; a pair
            may be there twice. The margins hold for the worst positive of a query.
        rules: Which candidates are negatives.
        excluded: [E, 2] int further pairs that are no negatives, such as a query and
            the passage with the same text.
        similarity: One of `similarity.SIMILARITIES` of the kind, which finds the
            candidates.
        rescore: Function that scores pairs by another model, a guide or a
            cross-encoder: its scores then rank the candidates and pass the thresholds.
        seed: Seed of the sampling "random" and of random passages.

    Raises:
        ValueError: As in `rank_documents` and, with `fill`, `fill_negatives`.
    """
    chex.assert_shape(positives, (None, 2))
    num_queries, num_passages = count_texts(queries), count_texts(passages)
    excluded = np.zeros((0, 2), np.int64) if excluded is None else excluded
    most_positives, most_excluded = map(count_most, (positives, excluded))
    range_max = rules.choose_range_max(most_positives, rescored=rescore is not None)
    # [Q, C] scores and passages: with room for those that are no candidates
    width = range_max + most_positives + most_excluded
    with show_progress(f"searching {num_passages:,} passages"):
        scores, numbers = rank_documents(
            queries, passages, width, similarity=similarity
        )
    known = np.concatenate([positives, excluded])
    rows = np.broadcast_to(np.arange(num_queries)[:, None], numbers.shape)
    pairs = np.stack([rows, numbers], axis=-1)  # [Q, C, 2]
    is_candidate = ~find_known_pairs(known, pairs, num_passages)

    # Scores of candidates and of positives, by the same model
    if rescore is None:
        score = partial(score_pairs, queries, passages, similarity=similarity)
        positive_scores = score(positives)  # [P]
    else:
        score = rescore
        # In one call, for which a guide embeds each text once
        scored = np.concatenate([positives, pairs[is_candidate]])
        values = np.asarray(score(scored), np.float32)
        positive_scores = values[: len(positives)]
        scores = np.zeros_like(scores)
        scores[is_candidate] = values[len(positives) :]
    scores = np.where(is_candidate, scores, np.float32(-np.inf))
    lowest = np.full(num_queries, np.inf, np.float32)  # [Q] of the positives
    np.minimum.at(lowest, positives[:, 0], positive_scores)
    scores, dropped = drop_candidates(scores, lowest, rules)
    numbers, scores = select_negatives(scores, numbers, rules, range_max, seed)

    is_missing = numbers < 0  # [Q, N]
    if rules.fill and is_missing.any():
        numbers = fill_negatives(numbers, known, num_passages, seed)
        pairs = np.stack(np.broadcast_arrays(rows[:, :1], numbers), axis=-1)
        scores[is_missing] = score(pairs[is_missing])
    return Negatives(
        passages=numbers,
        scores=scores,
        missing=is_missing.sum(axis=1),
        positive_scores=positive_scores,
        candidates=int(is_candidate.sum()),
        dropped=dropped,
    )


def embed_and_score(
    embed_queries: Callable[[np.ndarray], Embeddings],
    embed_passages: Callable[[np.ndarray], Embeddings],
    pairs: np.ndarray,
    similarity: str = "cosine",
) -> np.ndarray:
    """As `score_pairs`, of texts that are embedded here, each once.

    Args:
        embed_queries: Function of the sorted indices [q] of the queries that pairs
            have, to their embeddings.
        embed_passages: The same for passages.
        pairs: [P, 2] int indices of a query and a passage.
        similarity: As in `score_pairs`.

    Returns:
        [P] float32.
    """
    # Texts that no pair has are not embedded
    (queries, rows), (passages, columns) = (
        np.unique(x, return_inverse=True) for x in pairs.T
    )
    return score_pairs(
        embed_queries(queries),
        embed_passages(passages),
        np.stack([rows, columns], axis=1),
        similarity,
    )


def score_pairs(
    queries: Embeddings,
    passages: Embeddings,
    pairs: np.ndarray,
    similarity: str = "cosine",
) -> np.ndarray:
    """The similarity of some pairs of a query and a passage.

    Args:
        queries: Embeddings of Q queries.
        passages: Embeddings of N passages, of the same kind.
        pairs: [P, 2] int indices of a query and a passage.
        similarity: One of `similarity.SIMILARITIES` of the kind.

    Returns:
        [P] float32.
    """
    check_similarity(queries, similarity)
    scores = np.empty(len(pairs), np.float32)
    if embedding_kind(queries) == "dense":
        # Queries as they are compared with decoded passages
        if (quantizer := getattr(passages, "quantizer", None)) is not None:
            queries = quantizer.center_queries(queries)
        for start in range(0, len(pairs), PAIRS_PER_STEP):
            part = pairs[start : start + PAIRS_PER_STEP]
            q, d = queries[part[:, 0]], passages[part[:, 1]]  # [p, D] each
            if similarity == "cosine":
                q, d = l2_normalize_rows(q), l2_normalize_rows(d)
            scores[start : start + len(part)] = np.einsum("pd,pd->p", q, d)
        return scores
    # Of several vectors and of sparse ones, the pairs of one query at a time
    numbers, first = np.unique(np.sort(pairs[:, 0]), return_index=True)
    places = np.split(np.argsort(pairs[:, 0], kind="stable"), first[1:])
    for query, rows in zip(numbers, places, strict=True):
        some = take_texts(queries, [query]), take_texts(passages, pairs[rows, 1])
        scores[rows] = score_candidates(*some, similarity)
    return scores
