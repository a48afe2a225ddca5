"""The evaluators that a config or a command can name."""

from collections.abc import Callable, Mapping

import numpy as np

from research.data.sources import SOURCES
from research.eval.longembed import longembed
from research.eval.retrieval import ranking, retrieval
from research.eval.sts import sts
from research.types import Evaluator

# Of a token of code, about; a text seldom has more tokens than by this.
CHARACTERS = 3
# Characters of a function of `pydocs_long`.
LONGEST = 1_000


def pydocs_retrieval(
    *, candidates: int = 1_000, queries: int = 1_000, seed: int = 0
) -> Evaluator:
    """Finding the code of a docstring, in Python packages that are never trained on.

    Args:
        candidates: functions to search; fewer if the packages do not have as many.
        queries: docstrings to search with, of the first of these functions.
        seed: of the choice of functions.

    Returns:
        the evaluator of `retrieval`, with `bm25` beside it.

    Raises:
        ValueError: there is nothing to search.
    """
    rows = SOURCES["pydocs"](split="test").examples
    if not len(rows) or min(candidates, queries) < 1:
        raise ValueError(
            f"pydocs_retrieval of {candidates} candidates and {queries} queries: "
            f"the test split holds {len(rows)} functions"
        )
    order = np.random.default_rng(seed).permutation(len(rows))[:candidates]
    chosen = [rows[int(i)] for i in order]
    corpus = {str(i): row.positives[0] for i, row in enumerate(chosen)}
    asked = {str(i): row.query for i, row in enumerate(chosen[:queries])}
    qrels = {query: {query: 1} for query in asked}
    return ranking(corpus, asked, qrels, lexical=True)


def pydocs_long(
    *, length: int = 1_024, candidates: int = 100, seed: int = 0
) -> Evaluator:
    """Finding the code of many docstrings at once, all in one long text.

    A document is the code of functions one after another, and its query their
    docstrings in another order, so that a model has to read all of both. The functions
    are of packages that are never trained on; the documents of a greater length are
    those of a smaller one, continued.

    Args:
        length: of the documents, in tokens of `CHARACTERS` characters; a document holds
            the functions that fit, at least one. Queries have a sixth of it.
        candidates: documents to search, with a query for each.
        seed: of the choice of functions.

    Returns:
        the evaluator of `retrieval`, with `bm25` beside it.

    Raises:
        ValueError: there are too few functions for documents of that length, or no
            candidates.
    """
    rows = [
        row
        for row in SOURCES["pydocs"](split="test").examples
        if len(row.positives[0]) <= LONGEST
    ]
    if candidates < 1:
        raise ValueError(
            f"pydocs_long of {candidates} candidates: there is no document"
        )
    rng = np.random.default_rng(seed)
    order = [rows[i] for i in rng.permutation(len(rows))]
    corpus, asked = {}, {}
    for number in range(candidates):
        dealt = order[number::candidates]
        sizes = np.cumsum([len(row.positives[0]) for row in dealt])
        count = max(1, int(np.searchsorted(sizes, length * CHARACTERS, side="right")))
        if count >= len(dealt):
            raise ValueError(
                f"pydocs_long of {candidates} documents of {length} tokens needs more "
                f"than the {len(rows)} functions of the test split"
            )
        corpus[str(number)] = "\n\n".join(row.positives[0] for row in dealt[:count])
        shuffled = rng.permutation(count)
        asked[str(number)] = " ".join(dealt[i].query for i in shuffled)
    return ranking(corpus, asked, {query: {query: 1} for query in asked}, lexical=True)


EVALS: Mapping[str, Callable[..., Evaluator]] = {
    "sts": sts,
    "retrieval": retrieval,
    "pydocs_retrieval": pydocs_retrieval,
    "pydocs_long": pydocs_long,
    "longembed": longembed,
}
