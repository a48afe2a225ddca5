"""Reranking: orders the candidates of each query by their similarity to it (mteb)."""

import numpy as np

from research.config_sections import check_option
from research.eval.metrics import Run, check_metrics
from research.eval.tasks.files import read_candidates
from research.eval.tasks.retrieval import check_judgments, score_run
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator, TaskScores

METRICS = ("map@1000", "ndcg@10", "mrr@10")


def reranking(
    *,
    data: str,
    split: str = "test",
    similarity: str = "cosine",
    samples: int = 0,
    metrics: tuple[str, ...] = METRICS,
    abstention: bool = False,
) -> Evaluator:
    """Ranks the candidates of each query, such as the results of another search.

    Args:
        data: A BEIR folder that also has top_ranked.jsonl, with a query-id and its
            corpus-ids in each row; or a file with the fields query, positive and
            negative, the latter two lists of texts.
        split: Name of the file in the folder's qrels/, without its ending.
        similarity: "cosine", or "dot" for dot products of the model's vectors.
        samples: Number of bootstrap samples of the queries for a confidence interval; 0
            for no interval.
        metrics: As in `retrieval`; the first is the main score, MAP by default.
        abstention: As in `retrieval`.

    Returns:
        embed -> {"main_score", "map@1000", "ndcg@10", "mrr@10"} in percent, and as in
        `retrieval`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed, a query has no candidates, or a metric is
            unknown.
    """
    check_option("similarity", similarity, ("cosine", "dot"))
    check_metrics(metrics)
    queries, documents, qrels, ranked, groups = read_candidates(data, split)
    check_judgments(data, qrels)
    row_of = {name: row for row, name in enumerate(documents)}

    def evaluate(embed: EmbedFn) -> TaskScores:
        q = np.asarray(embed(list(queries.values()), "query"))  # [Q, D]
        d = np.asarray(embed(list(documents.values()), "document"))  # [N, D]
        if similarity == "cosine":
            q, d = l2_normalize_rows(q), l2_normalize_rows(d)
        # [candidates] of each query; not by a matrix product, whose rounding depends on
        # the position of a row, so that equal candidates would differ.
        scores = {}
        for query, vector in zip(queries, q, strict=True):
            candidates = d[[row_of[name] for name in ranked[query]]]
            scores[query] = np.einsum("nd,d->n", candidates, vector)

        def make_run() -> Run:
            return {
                query: dict(zip(ranked[query], values.tolist(), strict=True))
                for query, values in scores.items()
            }

        result = score_run(
            qrels, make_run, metrics, samples=samples, abstention=abstention
        )
        result.item_values = result.item_values._replace(groups=groups)
        return result

    return evaluate
