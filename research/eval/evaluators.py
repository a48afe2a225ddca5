"""The table of evaluators for configs and commands, and those of pydocs.

An evaluator scores an EmbedFn; one that needs the model itself is a ModelEvaluator.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from research.data.sources import SOURCES
from research.eval.bias.length_collapse import length_collapse
from research.eval.bias.mexa import mexa
from research.eval.bias.positional_bias import positional_bias
from research.eval.examples import examples
from research.eval.geometry.evaluators import geometry, token_geometry
from research.eval.limit import limit
from research.eval.longembed import longembed
from research.eval.perplexity import perplexity
from research.eval.tasks.bitext_mining import bitext_mining
from research.eval.tasks.classification import classification
from research.eval.tasks.clustering import clustering
from research.eval.tasks.multilabel import multilabel
from research.eval.tasks.pair_classification import pair_classification
from research.eval.tasks.reranking import reranking
from research.eval.tasks.retrieval import ranking, retrieval
from research.eval.tasks.sts import sts
from research.eval.tasks.summarization import summarization
from research.types import Evaluator, ModelEvaluator

# Approximate number of characters per token of code, chosen low so that few texts have
# more tokens than it predicts.
CHARACTERS_PER_TOKEN = 3
# Maximum number of characters of a function in `pydocs_long`.
MAX_FUNCTION_CHARACTERS = 1_000


def pydocs_retrieval(
    *,
    candidates: int = 1_000,
    queries: int = 1_000,
    seed: int = 0,
    similarity: str = "cosine",
) -> Evaluator:
    """Code search: finds the function for a docstring, in held-out packages.

    Args:
        candidates: Maximum number of functions to search.
        queries: Number of docstrings to search with, those of the first candidates.
        seed: int of the choice of functions.
        similarity: As in `retrieval`.

    Returns:
        An evaluator with the scores of `retrieval` and of BM25 as "bm25".

    Raises:
        ValueError: There is nothing to search.
    """
    examples = SOURCES["pydocs"](split="test").examples
    if not len(examples) or min(candidates, queries) < 1:
        raise ValueError(
            f"pydocs_retrieval of {candidates} candidates and {queries} queries: "
            f"the test split holds {len(examples)} functions"
        )
    # Every docstring has one relevant function: {id: text} of both, and qrels.
    order = np.random.default_rng(seed).permutation(len(examples))[:candidates]
    sample = [examples[int(i)] for i in order]
    corpus = {str(i): example.positives[0] for i, example in enumerate(sample)}
    texts = {str(i): example.query for i, example in enumerate(sample[:queries])}
    qrels = {query: {query: 1} for query in texts}
    return ranking(corpus, texts, qrels, similarity=similarity, lexical=True)


def pydocs_long(
    *,
    length: int = 1_024,
    candidates: int = 100,
    seed: int = 0,
    similarity: str = "cosine",
) -> Evaluator:
    """Code search in long documents of several functions each.

    A document is the code of several functions, and its query consists of their
    docstrings in a different order, so that a model has to read all of both. The
    functions come from held-out packages. The documents of a greater length start with
    those of a smaller length.

    Args:
        length: Approximate length of the documents in tokens; a document holds the
            functions that fit, at least one. Queries are about a sixth as long.
        candidates: Number of documents to search, each with a query.
        seed: int of the choice of functions.
        similarity: As in `retrieval`.

    Returns:
        An evaluator with the scores of `retrieval` and of BM25 as "bm25".

    Raises:
        ValueError: There are too few functions for documents of that length, or no
            candidates.
    """
    if candidates < 1:
        raise ValueError(
            f"pydocs_long of {candidates} candidates: there is no document"
        )
    examples = [
        example
        for example in SOURCES["pydocs"](split="test").examples
        if len(example.positives[0]) <= MAX_FUNCTION_CHARACTERS
    ]
    rng = np.random.default_rng(seed)
    shuffled = [examples[i] for i in rng.permutation(len(examples))]
    corpus, queries = {}, {}
    for number in range(candidates):
        # Every document has its own functions, as many as fit.
        functions = shuffled[number::candidates]
        ends = np.cumsum([len(example.positives[0]) for example in functions])
        limit = length * CHARACTERS_PER_TOKEN
        count = max(1, int(np.searchsorted(ends, limit, side="right")))
        if count >= len(functions):
            raise ValueError(
                f"pydocs_long of {candidates} documents of {length} tokens needs more "
                f"than the {len(examples)} functions of the test split"
            )
        code = (example.positives[0] for example in functions[:count])
        corpus[str(number)] = "\n\n".join(code)
        # The docstrings are shuffled, so that their order gives no hint.
        docstrings = (functions[i].query for i in rng.permutation(count))
        queries[str(number)] = " ".join(docstrings)
    qrels = {query: {query: 1} for query in queries}
    return ranking(corpus, queries, qrels, similarity=similarity, lexical=True)


# {name in a config or a flag: function that makes the evaluator}
EVALS: Mapping[str, Callable[..., Evaluator | ModelEvaluator]] = {
    "sts": sts,
    "retrieval": retrieval,
    "reranking": reranking,
    "classification": classification,
    "multilabel": multilabel,
    "clustering": clustering,
    "pair_classification": pair_classification,
    "bitext_mining": bitext_mining,
    "summarization": summarization,
    "examples": examples,
    "pydocs_retrieval": pydocs_retrieval,
    "pydocs_long": pydocs_long,
    "length_collapse": length_collapse,
    "limit": limit,
    "longembed": longembed,
    "mexa": mexa,
    "perplexity": perplexity,
    "geometry": geometry,
    "token_geometry": token_geometry,
    "positional_bias": positional_bias,
}
# Those without a main score of embeddings: no value of a measure is better than another
# one, or the model itself is scored.
NO_MAIN_SCORE = (
    *("perplexity", "geometry", "token_geometry"),
    *("positional_bias", "length_collapse"),
)
# {evaluator: its main score}; those of searches may have another first metric
MAIN_SCORES = {
    "sts": "Spearman's correlation",
    "retrieval": "nDCG@10",
    "reranking": "MAP@1000",
    "classification": "accuracy",
    "multilabel": "exact matches",
    "clustering": "V-measure",
    "pair_classification": "average precision",
    "bitext_mining": "F1",
    "summarization": "Spearman's correlation",
    "examples": "nDCG@10",
    "pydocs_retrieval": "nDCG@10",
    "pydocs_long": "nDCG@10",
    "longembed": "accuracy@1",
}


def name_main_score(evaluator: str | None, metrics: Sequence[str] = ()) -> str:
    """What the main score of an evaluator is, for the axis of a plot.

    Args:
        evaluator: Name in EVALS, or another one.
        metrics: The metrics that a search was asked for, such as "recall@100".
    """
    metric = metrics[0] if metrics else MAIN_SCORES.get(evaluator, "main score")
    return f"{metric}, %"
