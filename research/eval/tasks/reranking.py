"""Reranking: orders the candidates of each query by their similarity to it (mteb)."""

from research.config_sections import check_option
from research.eval.metrics import Run, check_metrics
from research.eval.tasks.files import read_candidates
from research.eval.tasks.retrieval import check_judgments, score_run
from research.inference.similarity import NAMES, score_candidates, take_texts
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
        similarity: As in `retrieval`.
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
    check_option("similarity", similarity, NAMES)
    check_metrics(metrics)
    queries, documents, qrels, ranked, groups = read_candidates(data, split)
    check_judgments(data, qrels)
    row_of = {name: row for row, name in enumerate(documents)}

    def evaluate(embed: EmbedFn) -> TaskScores:
        q = embed(list(queries.values()), "query")  # [Q, D]
        d = embed(list(documents.values()), "document")  # [N, D]
        # [candidates] of each query
        scores = {}
        for number, name in enumerate(queries):
            query = take_texts(q, [number])
            candidates = take_texts(d, [row_of[row] for row in ranked[name]])
            scores[name] = score_candidates(query, candidates, similarity)

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
