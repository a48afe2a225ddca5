"""Retrieval: ranks a corpus for each query; nDCG@10, Recall@100 and MRR@10 (BEIR)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import chex
import numpy as np

from research.config_sections import check_option
from research.data.files import read_beir
from research.eval.bm25 import bm25
from research.eval.metrics import (
    METRICS,
    Qrels,
    Run,
    abstention_scores,
    bootstrap,
    check_metrics,
    parse_metric,
    query_scores,
    ranking_scores,
)
from research.eval.tasks.files import read_groups
from research.eval.tasks.splits import find_split
from research.inference.fusion import fuse_rankings, parse_fusion
from research.inference.search import rank_documents
from research.inference.similarity import NAMES
from research.progress import show_note
from research.types import EmbedFn, Evaluator, ItemValues, TaskScores

# The smallest number of documents that a ranking holds, if the corpus has as many; that
# of mteb where a query's confidence is computed from it.
MIN_RANKS, NAUC_RANKS = 100, 1_000


def retrieval(
    *,
    data: str,
    split: str = "test",
    similarity: str = "cosine",
    ignore_identical_ids: bool = False,
    lexical: bool = False,
    samples: int = 0,
    queries: int = 0,
    metrics: tuple[str, ...] = METRICS,
    abstention: bool = False,
    hybrid: str = "",
) -> Evaluator:
    """Retrieval on a BEIR folder: exact search for each query of a split.

    Args:
        data: A folder with corpus.jsonl, queries.jsonl and qrels/, plain or .gz.
        split: Name of the file in qrels/, without its ending.
        similarity: "cosine", or "dot" for dot products of the model's vectors; "maxsim"
            and its variants for several vectors per text (`similarity.SIMILARITIES`);
            "" for that of the `Embedder` which is scored.
        ignore_identical_ids: Whether a document with the id of the query is left out of
            the query's ranking (ArguAna).
        lexical: Whether BM25 is scored, too, as "bm25".
        samples: Number of bootstrap samples of the queries for a confidence interval; 0
            for no interval.
        queries: Number of queries, drawn at random from the split; 0 for all.
        metrics: Metrics such as "ndcg@10": ndcg, map, recall, precision, hit_rate or
            mrr among the best k documents.
        abstention: Whether the nAUC of the first metric is computed, as mteb does from
            rankings of 1,000 documents; see `abstention_scores`.
        hybrid: The fusion of the rankings by vectors and by BM25, as `parse_fusion`
            reads it; "" for none.

    Returns:
        embed -> {"main_score", "ndcg@10", "recall@100", "mrr@10"} in percent, or the
        metrics asked for. The main score is the first metric; with `samples`, "low" and
        "high" are the ends of its 95 % interval. The score of a chunked document is
        that of its best chunk. If the qrels name documents or queries that have no
        text, "unknown_documents" and "unknown_queries" are their numbers: these
        documents count as not found, and these queries do not count.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, a metric unknown, or `queries` negative.
    """
    if queries < 0:
        raise ValueError(f"queries is {queries}; it should be 0, for all, or more")
    folder = read_beir(data, split)
    corpus, query_texts, qrels, *_ = folder
    check_judgments(data, qrels)
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
        metrics=metrics,
        abstention=abstention,
        hybrid=hybrid,
    )
    unknown = {
        "unknown_documents": len(folder.unknown_documents),
        "unknown_queries": len(folder.unknown_queries),
    }

    groups = read_groups(find_split(data, "queries"), list(qrels), "_id")

    def evaluate_split(embed: EmbedFn) -> TaskScores:
        scores = evaluate(embed)
        scores.item_values = scores.item_values._replace(groups=groups)
        scores.update({name: count for name, count in unknown.items() if count})
        return scores

    return evaluate_split


def ranking(
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Qrels,
    *,
    similarity: str = "cosine",
    ignore_identical_ids: bool = False,
    lexical: bool = False,
    samples: int = 0,
    metrics: Sequence[str] = METRICS,
    abstention: bool = False,
    hybrid: str = "",
) -> Evaluator:
    """The evaluator of `retrieval`, for a corpus and queries {id: text} in memory."""
    if similarity:
        check_option("similarity", similarity, NAMES)
    check_metrics(metrics)
    documents, query_texts = list(corpus.values()), list(queries.values())
    names = list(queries), list(corpus), ignore_identical_ids
    # The query itself may take one rank before it is left out.
    least = NAUC_RANKS if abstention else MIN_RANKS
    ranks = max([least, *(parse_metric(name)[1] for name in metrics)])
    ranks += ignore_identical_ids
    # trec_eval's order of equal scores: the id that sorts last comes first, wherever
    # the document is in the corpus.
    order = sorted(range(len(corpus)), key=names[1].__getitem__, reverse=True)
    precedence = np.empty(len(corpus), np.int64)  # [N]
    precedence[order] = np.arange(len(corpus))
    # BM25 does not depend on the model, so it runs only once.
    baseline = {}
    fusion = parse_fusion(hybrid) if hybrid else None
    if lexical or fusion:
        scores, rows = bm25(query_texts, [documents[i] for i in order], ranks)
        lexical_ranked = scores, np.asarray(order)[rows]
    if lexical:
        lexical_run = make_run(*lexical_ranked, *names)
        lexical_scores = ranking_scores(qrels, lexical_run, metrics)
        baseline["bm25"] = lexical_scores[metrics[0]]

    def evaluate(embed: EmbedFn) -> TaskScores:
        q = embed(query_texts, "query")  # [Q, D]
        d = _embed_documents(embed, corpus)  # [N, D], or the documents' chunks
        name = similarity or embed.model.similarity
        ranked = rank_documents(
            q, d, ranks, similarity=name, precedence=precedence
        )  # [Q, ranks]
        if fusion:
            # Every list has min(ranks, N) documents, so that none is missing
            count = ranked[0].shape[1]
            ranked = fuse_rankings(fusion, [ranked, lexical_ranked], count)
        run = partial(make_run, *ranked, *names)
        scores = score_run(qrels, run, metrics, samples=samples, abstention=abstention)
        scores.update(baseline)
        return scores

    return evaluate


def check_judgments(data: str, qrels: Qrels) -> None:
    """Raises ValueError if no query has a relevant document; notes queries without."""
    empty = [query for query, grades in qrels.items() if max(grades.values()) <= 0]
    if len(empty) == len(qrels):
        raise ValueError(f"{data}: no query has a relevant document")
    if empty:
        show_note(
            f"{data}: {len(empty):,} of {len(qrels):,} queries have no relevant "
            f"document, such as {empty[0]!r}; they score 0, as in mteb"
        )


def score_run(
    qrels: Qrels,
    get_run: Callable[[], Run],
    metrics: Sequence[str],
    *,
    samples: int = 0,
    abstention: bool = False,
) -> TaskScores:
    """The scores of the rankings that a model made, as described in `retrieval`.

    Args:
        qrels: {query id: {document id: grade}}.
        get_run: Function () -> {query id: {document id: score}}.
        metrics: Names of metrics; the first is the main score.
        samples: Number of bootstrap samples of the queries.
        abstention: Whether the nAUC is computed, too.
    """
    run = get_run()
    per_query = query_scores(qrels, run, metrics)  # {metric: [Q]}
    means = {name: float(values.mean()) for name, values in per_query.items()}
    main = per_query[metrics[0]]
    scores = {"main_score": float(main.mean()), **means}
    if abstention:
        scores |= abstention_scores(run, qrels, main)
    scores |= bootstrap((main,), np.mean, samples=samples)
    # The run is made again where it is needed: it is large.
    return TaskScores(scores, ItemValues(list(qrels), (main,), np.mean, get_run))


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
