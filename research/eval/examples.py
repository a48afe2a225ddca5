"""Evaluation on examples in the format of training: a search, or scored pairs."""

from research.data.sources import SOURCES
from research.eval.tasks.retrieval import ranking
from research.eval.tasks.sts import correlation
from research.types import Evaluator


def examples(
    *, data: str, columns: str = "", part: str = "all", samples: int = 0
) -> Evaluator:
    """Finds the positives of each query, or compares the similarities of scored pairs.

    Examples with scores are evaluated as in `sts`. Those without are searched: the
    corpus consists of the positives and hard negatives of all examples, and the
    relevant documents of a query are its positives.

    Args:
        data: A jsonl, tsv or csv file, plain or .gz, as for the source `files`.
        columns: Names of its columns, as for the source `files`.
        part: "all", or "held_out" for the tenth that a source with part="train" leaves
            out.
        samples: Number of bootstrap samples for a confidence interval; 0 for none.

    Returns:
        An evaluator with the scores of `sts`, or those of `retrieval` and of BM25 as
        "bm25".

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is malformed, or some examples have scores and others not.
    """
    source = SOURCES["files"](path=data, columns=columns, part=part, negatives=0)
    scores = [e.score for e in source.examples if e.score is not None]
    if scores:
        if len(scores) < len(source.examples):
            raise ValueError(f"{data}: some rows have a score and others none")
        first = [e.query for e in source.examples]
        second = [e.positives[0] for e in source.examples]
        return correlation(first, second, scores, data, samples=samples)
    # Equal texts are one document, and equal queries one query: {text: id}.
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for example in source.examples:
        query = queries.setdefault(example.query, str(len(queries)))
        for text in (*example.positives, *example.negatives):
            documents.setdefault(text, str(len(documents)))
        positives = {documents[text]: 1 for text in example.positives}
        qrels.setdefault(query, {}).update(positives)
    corpus = {name: text for text, name in documents.items()}
    texts = {name: text for text, name in queries.items()}
    return ranking(corpus, texts, qrels, lexical=True, samples=samples)
