"""LIMIT: a retrieval task that single vectors cannot solve, though its words are plain.

Weller et al. 2025, "On the Theoretical Limitations of Embedding-Based Retrieval". Every
document lists what a person likes, and every query asks who likes one of these things.
The answers are all pairs of a few documents, more sets than a vector of small width can
rank at the top.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from research.data.corpus import read_corpus
from research.eval.tasks.retrieval import ranking
from research.types import Evaluator

QUERIES = 1000
JUDGED = 46  # documents with an answer: the smallest n with n (n - 1) / 2 >= QUERIES
LIKED = 45  # attributes of each document
CUTOFFS = (2, 10, 20, 100)
FIRST_NAMES = """
    Ada Alan Alma Amir Anna Arjun Aya Ben Bea Carl Cora Dana David Dora Emil Emma Eva
    Farid Fay Felix Finn Gina Greta Hana Hugo Ida Ines Ivan Jack Jane Joel Julia Kai
    Karin Kofi Lars Lea Leo Lin Lola Luca Maja Marco Mina Nadia Nils Nora Olga Omar Otto
    Paul Petra Priya Rosa Ruth Sam Sara Sofia Tara Tim Tom Uma Vera Viktor Wei Yara Zoe
    """
SURNAME_STARTS = """
    Ash Bar Black Bolt Brad Bram Burn Carl Chester Clay Cole Craw Dal Dar Eastern Elling
    Fair Far Ferris Gar Gold Graf Hal Har Hart Hazel Holl Hunt Kings Lang Law Lind Mar
    Mel Nor Oak Pem Rad Red Rock Sher Stan Thorn Wake Whit Win
    """
SURNAME_ENDS = """
    bridge burn bury by dale den ell er field ford ham ing land ley man mere more ridge
    son stone ton well wick wood worth
    """


class Limit(NamedTuple):
    """The texts and answers of the task.

    Attributes:
        documents: N texts, those with an answer first.
        queries: Q texts.
        relevant: [Q, 2] indices of the two answers of each query.
    """

    documents: list[str]
    queries: list[str]
    relevant: np.ndarray


def make_limit(
    attributes: Sequence[str],
    *,
    documents: int = JUDGED,
    queries: int = QUERIES,
    seed: int = 42,
) -> Limit:
    """Makes the task for a list of things that people may like.

    The queries are about the first attributes of a random order; the others are
    fillers. No document without an answer has an attribute of a query, so that a search
    for the exact words solves the task.

    Args:
        attributes: Different attributes, at least LIKED more than queries.
        documents: Number of documents: 46, or 50,000 as in the full set.
        queries: Number of queries.
        seed: Seed of the order, the fillers and the names.

    Raises:
        ValueError: There are too few attributes, or too few or too many documents.
    """
    # A repeated attribute would make two queries of one text.
    attributes = list(dict.fromkeys(attributes))
    # Documents with answers: the smallest number with a pair for each query.
    judged = next(n for n in range(2, queries + 2) if n * (n - 1) // 2 >= queries)
    liked = max(LIKED, judged - 1)
    if len(attributes) < queries + liked:
        raise ValueError(
            f"{len(attributes)} different attributes are too few for {queries} "
            f"queries: {queries + liked} or more are needed"
        )
    # All combinations of the parts of names.
    parts = (part.split() for part in (FIRST_NAMES, SURNAME_STARTS, SURNAME_ENDS))
    names = [f"{first} {start}{end}" for first, start, end in product(*parts)]
    if not judged <= documents <= len(names):
        raise ValueError(
            f"LIMIT of {documents} documents: {judged} ... {len(names)} are possible"
        )
    # What queries ask for, and what fills the documents up.
    rng = np.random.default_rng(seed)
    shuffled = [attributes[i] for i in rng.permutation(len(attributes))]
    asked, fillers = shuffled[:queries], shuffled[queries:]
    names = [names[i] for i in rng.permutation(len(names))[:documents]]
    # [Q, 2] the first pairs in lexicographic order.
    relevant = np.array(list(combinations(range(judged), 2))[:queries])
    likes: list[list[str]] = [[] for _ in range(documents)]
    for attribute, pair in zip(asked, relevant, strict=True):
        for number in pair:
            likes[number].append(attribute)
    # Random fillers, different ones within a document.
    for items in likes:
        order = rng.permutation(len(fillers))[: liked - len(items)]
        items += [fillers[i] for i in order]
    texts = [
        f"{name} likes {', '.join(items[:-1])} and {items[-1]}."
        for name, items in zip(names, likes, strict=True)
    ]
    return Limit(texts, [f"Who likes {attribute}?" for attribute in asked], relevant)


def limit(
    *, data: str, documents: int = JUDGED, queries: int = QUERIES, seed: int = 42
) -> Evaluator:
    """The LIMIT task: recall of the two answers of each query.

    Args:
        data: A file with one attribute per line, as for a corpus.
        documents: Number of documents, as in `make_limit`.
        queries: Number of queries.
        seed: Seed of the task.

    Returns:
        An evaluator with "recall@2", "recall@10", "recall@20", "recall@100" in percent,
        the largest of these cutoffs that is below the number of documents as
        "main_score", and "bm25", which is the same for BM25.

    Raises:
        FileNotFoundError, ValueError: The file is missing, or as in `make_limit`.
    """
    task = make_limit(
        read_corpus(data)[1], documents=documents, queries=queries, seed=seed
    )
    return score_limit(task)


def score_limit(task: Limit) -> Evaluator:
    """The evaluator of `limit` for a task in memory."""
    last, *cutoffs = [k for k in CUTOFFS[::-1] if k < len(task.documents)]
    corpus = {f"d{i}": text for i, text in enumerate(task.documents)}
    queries = {f"q{i}": text for i, text in enumerate(task.queries)}
    qrels = {
        query: {f"d{i}": 1 for i in pair}
        for query, pair in zip(queries, task.relevant, strict=True)
    }
    metrics = [f"recall@{k}" for k in (last, *cutoffs[::-1])]
    return ranking(corpus, queries, qrels, metrics=metrics, lexical=True)
