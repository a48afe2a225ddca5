"""Retrieval: are the documents that answer a query found first?"""

from collections.abc import Mapping, Sequence

import numpy as np

from research.data.files import read_beir
from research.eval.bm25 import bm25
from research.eval.metrics import Qrels, bootstrap, query_scores, ranking_scores
from research.inference.search import rank_documents
from research.types import EmbedFn, Evaluator

# As deep as the deepest metric, Recall@100, looks.
RANKS = 100


def retrieval(
    *,
    data: str,
    split: str = "test",
    similarity: str = "cosine",
    ignore_identical_ids: bool = False,
    lexical: bool = False,
    samples: int = 0,
    queries: int = 0,
) -> Evaluator:
    """Ranking of a BEIR folder's corpus for each query of a split, by exact search.

    Args:
        data: a folder with corpus.jsonl, queries.jsonl and qrels/, plain or .gz.
        split: which file of qrels/.
        similarity: 'cosine', or 'dot' of the vectors as the model gives them.
        ignore_identical_ids: a document with the query's id is no answer (ArguAna).
        lexical: also score BM25, as `bm25`.
        samples: of the queries, for a confidence interval; 0 for none.
        queries: draw so many of the split's; 0, or more than it has, for all.

    Returns:
        embed -> {"main_score", "ndcg@10", "recall@100", "mrr@10"} in percent, and with
        samples "low" and "high"; the main score is nDCG@10, its 95 % interval lies
        between these. Of documents in chunks the best chunk counts.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed.
    """
    if queries < 0:
        raise ValueError(f"queries is {queries}; it should be 0, for all, or more")
    corpus, asked, qrels = read_beir(data, split)
    if 0 < queries < len(asked):
        drawn = np.random.default_rng(0).permutation(sorted(asked))[:queries].tolist()
        asked, qrels = ({i: part[i] for i in drawn} for part in (asked, qrels))
    return ranking(
        corpus,
        asked,
        qrels,
        similarity=similarity,
        ignore_identical_ids=ignore_identical_ids,
        lexical=lexical,
        samples=samples,
    )


def ranking(
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Qrels,
    *,
    similarity: str = "cosine",
    ignore_identical_ids: bool = False,
    lexical: bool = False,
    samples: int = 0,
) -> Evaluator:
    """The evaluator of `retrieval` over {id: text} of documents and of queries."""
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity is {similarity!r}; allowed: cosine, dot")
    documents, asked = list(corpus.values()), list(queries.values())
    names = list(queries), list(corpus), ignore_identical_ids
    ranks = RANKS + ignore_identical_ids
    extra = {}
    if lexical:
        found = bm25(asked, documents, ranks)
        extra["bm25"] = ranking_scores(qrels, run(*found, *names))["ndcg@10"]

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        q, d = embed(asked, "query"), embed(documents, "document")
        found = rank_documents(q, d, ranks, similarity=similarity)
        every = query_scores(qrels, run(*found, *names))
        scores = {name: float(values.mean()) for name, values in every.items()}
        interval = bootstrap(every["ndcg@10"], np.mean, samples=samples)
        return {"main_score": scores["ndcg@10"], **scores, **interval, **extra}

    return evaluate


def run(
    scores: np.ndarray,
    rows: np.ndarray,
    queries: Sequence[str],
    documents: Sequence[str],
    ignore_identical_ids: bool = False,
) -> dict[str, dict[str, float]]:
    """{query id: {document id: score}} of search results [Q, k]."""
    return {
        query: {
            documents[row]: float(score)
            for score, row in zip(scores[i], rows[i], strict=True)
            if not (ignore_identical_ids and documents[row] == query)
        }
        for i, query in enumerate(queries)
    }
