"""Quality, bytes and speed of exact search by kind of embeddings, on one corpus."""

import time
from typing import Any

from research.data.files import read_beir
from research.eval.tables import markdown_table
from research.eval.tasks.retrieval import ranking
from research.inference.embedder import Embedder
from research.inference.search import rank_documents
from research.inference.similarity import count_bytes, count_texts, embedding_kind
from research.interop import load

HITS = 10  # documents that a timed search returns


def measure_kinds(systems: list[str], data: str, split: str, rounds: int) -> dict:
    """Scores and times the search of a BEIR folder by several systems.

    Args:
        systems: Models, each with " + " and a transform of token vectors if it has one,
            as "runs/colbert + pool_tokens(factor=2)".
        data: A BEIR folder.
        split: Name of the file in its qrels/.
        rounds: Number of timed searches for all queries, the fastest of which counts.

    Returns:
        A row for each system, and a table.
    """
    corpus, queries, qrels, *_ = read_beir(data, split)
    rows = [_measure_system(s, corpus, queries, qrels, rounds) for s in systems]
    header = ["system", "kind", "nDCG@10", "bytes per document", "queries/s"]
    cells = [
        [
            row["system"],
            row["kind"].replace("_", "-"),
            f"{row['ndcg@10']:.2f}",
            f"{row['bytes_per_document']:,.0f}",
            f"{row['queries_per_second']:,.0f}",
        ]
        for row in rows
    ]
    return {
        "documents": len(corpus),
        "queries": len(queries),
        "rows": rows,
        "table": markdown_table(header, cells),
    }


def _measure_system(system: str, corpus, queries, qrels, rounds: int) -> dict[str, Any]:
    """The row of one system."""
    # A model, and what is done to the vectors of its tokens
    name, _, transform = system.partition(" + ")
    embedder = Embedder(
        load.load(name), token_transform=transform.strip(), allow_empty=True
    )
    similarity = embedder.model.similarity
    # Texts are embedded once, and then searched again and again
    vectors = {
        "query": embedder(list(queries.values()), "query"),
        "document": embedder(list(corpus.values()), "document"),
    }
    evaluate = ranking(corpus, queries, qrels, similarity=similarity)
    scores = evaluate(lambda texts, role: vectors[role])
    seconds = []
    for _ in range(rounds + 1):  # the first one compiles
        start = time.perf_counter()
        rank_documents(*vectors.values(), HITS, similarity=similarity)
        seconds.append(time.perf_counter() - start)
    documents = vectors["document"]
    return {
        "system": system,
        "kind": embedding_kind(documents),
        "similarity": similarity,
        "ndcg@10": scores["ndcg@10"],
        "bytes_per_document": count_bytes(documents) / count_texts(documents),
        "queries_per_second": len(queries) / min(seconds[1:] or seconds),
    }
