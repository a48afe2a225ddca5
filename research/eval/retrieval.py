"""Retrieval: ranks a corpus for each query; nDCG@10, Recall@100 and MRR@10 (BEIR)."""

from collections.abc import Mapping, Sequence

import chex
import numpy as np

from research.data.files import read_beir
from research.eval.bm25 import bm25
from research.eval.metrics import Qrels, bootstrap, query_scores, ranking_scores
from research.inference.search import rank_documents
from research.types import EmbedFn, Evaluator

# The deepest metric is Recall@100.
MAX_RANK = 100


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
    """Retrieval on a BEIR folder: exact search for each query of a split.

    Args:
        data: A folder with corpus.jsonl, queries.jsonl and qrels/, plain or .gz.
        split: Name of the file in qrels/, without its ending.
        similarity: "cosine", or "dot" for dot products of the model's vectors.
        ignore_identical_ids: Whether a document with the id of the query is left out of
            the query's ranking (ArguAna).
        lexical: Whether BM25 is scored, too, as "bm25".
        samples: Number of bootstrap samples of the queries for a confidence interval; 0
            for no interval.
        queries: Number of queries, drawn at random from the split; 0 for all.

    Returns:
        embed -> {"main_score", "ndcg@10", "recall@100", "mrr@10"} in percent. The main
        score is nDCG@10; with `samples`, "low" and "high" are the ends of its 95 %
        interval. The score of a chunked document is that of its best chunk. If the
        qrels name documents or queries that have no text, "unknown_documents" and
        "unknown_queries" are their numbers: these documents count as not found, and
        these queries do not count.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, or `queries` is negative.
    """
    if queries < 0:
        raise ValueError(f"queries is {queries}; it should be 0, for all, or more")
    folder = read_beir(data, split)
    corpus, query_texts, qrels, *_ = folder
    if 0 < queries < len(query_texts):
        # A prefix of a fixed permutation, so that larger samples contain smaller ones.
        order = np.random.default_rng(0).permutation(sorted(query_texts))
        sample = order[:queries].tolist()
        query_texts = {name: query_texts[name] for name in sample}
        qrels = {name: qrels[name] for name in sample}
    evaluate = ranking(
        corpus,
        query_texts,
        qrels,
        similarity=similarity,
        ignore_identical_ids=ignore_identical_ids,
        lexical=lexical,
        samples=samples,
    )
    unknown = {
        "unknown_documents": len(folder.unknown_documents),
        "unknown_queries": len(folder.unknown_queries),
    }
    unknown = {name: count for name, count in unknown.items() if count}
    return lambda embed: evaluate(embed) | unknown


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
    """The evaluator of `retrieval`, for a corpus and queries {id: text} in memory."""
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity is {similarity!r}; allowed: cosine, dot")
    documents, query_texts = list(corpus.values()), list(queries.values())
    names = list(queries), list(corpus), ignore_identical_ids
    # The query itself may take one rank before it is left out.
    ranks = MAX_RANK + ignore_identical_ids
    # trec_eval's order of equal scores: the id that sorts last comes first, wherever
    # the document is in the corpus.
    order = sorted(range(len(corpus)), key=names[1].__getitem__, reverse=True)
    precedence = np.empty(len(corpus), np.int64)  # [N]
    precedence[order] = np.arange(len(corpus))
    # BM25 does not depend on the model, so it runs only once.
    baseline = {}
    if lexical:
        scores, rows = bm25(query_texts, [documents[i] for i in order], ranks)
        lexical_run = make_run(scores, np.asarray(order)[rows], *names)
        baseline["bm25"] = ranking_scores(qrels, lexical_run)["ndcg@10"]

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        q = embed(query_texts, "query")  # [Q, D]
        d = _embed_documents(embed, corpus)  # [N, D], or the documents' chunks
        ranked = rank_documents(
            q, d, ranks, similarity=similarity, precedence=precedence
        )  # [Q, ranks]
        per_query = query_scores(qrels, make_run(*ranked, *names))
        scores = {name: float(values.mean()) for name, values in per_query.items()}
        interval = bootstrap((per_query["ndcg@10"],), np.mean, samples=samples)
        return {"main_score": scores["ndcg@10"], **scores, **interval, **baseline}

    return evaluate


def _embed_documents(embed: EmbedFn, corpus: Mapping[str, str]):
    """The vectors of a corpus, some of whose texts may be empty (FiQA)."""
    try:
        return embed(list(corpus.values()), "document")
    except ValueError as error:
        # A tokenizer without special tokens has no tokens for such a text.
        empty = [name for name, text in corpus.items() if not text.strip()]
        if not empty:
            raise
        raise ValueError(
            f"{error}; the corpus has {len(empty)} documents without text, such as "
            f"{empty[0]!r}"
        ) from error


def make_run(
    scores: np.ndarray,
    indices: np.ndarray,
    queries: Sequence[str],
    documents: Sequence[str],
    ignore_identical_ids: bool = False,
) -> dict[str, dict[str, float]]:
    """Converts search results to {query id: {document id: score}} for trec_eval.

    Args:
        scores: [Q, k] scores of the retrieved documents.
        indices: [Q, k] indices of these documents in `documents`.
        queries: Q query ids.
        documents: N document ids.
        ignore_identical_ids: Whether a document with the id of the query is left out.
    """
    chex.assert_equal_shape([scores, indices])
    chex.assert_shape(scores, (len(queries), None))
    # A dict of the k documents of each query.
    return {
        query: {
            documents[row]: float(score)
            for score, row in zip(scores[i], indices[i], strict=True)
            if not (ignore_identical_ids and documents[row] == query)
        }
        for i, query in enumerate(queries)
    }
