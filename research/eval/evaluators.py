"""The evaluators that a config or a command can name."""

from collections.abc import Callable, Mapping

import numpy as np

from research.data.sources import SOURCES
from research.eval.longembed import longembed
from research.eval.retrieval import ranking, retrieval
from research.eval.sts import Evaluator, sts


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
    rows = SOURCES["pydocs"](split="test").rows
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


EVALS: Mapping[str, Callable[..., Evaluator]] = {
    "sts": sts,
    "retrieval": retrieval,
    "pydocs_retrieval": pydocs_retrieval,
    "longembed": longembed,
}
