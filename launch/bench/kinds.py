"""Quality, bytes and speed of exact search by kind of embeddings, on one corpus."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from launch import main as cli
from research.data.files import read_beir
from research.eval.tables import markdown_table
from research.eval.tasks.retrieval import ranking
from research.inference.embedder import Embedder
from research.inference.search import rank_documents
from research.inference.similarity import (
    count_bytes,
    count_texts,
    embedding_kind,
    get_width,
)
from research.inference.token_transforms import has_one_vector, parse_token_transform
from research.interop import load

HITS = 10  # documents that a timed search returns


def measure_kinds(
    systems: list[str], data: str, split: str, queries: int, rounds: int
) -> dict:
    """Scores and times the search of a BEIR folder by several systems.

    Args:
        systems: Models, perhaps with @ and a pooling, with + and a transform of token
            vectors, and with & and the fusion with BM25, whose speed is not measured,
            as "runs/colbert @ colbert() + pool_tokens(factor=2) & rrf(k=60)".
        data: A BEIR folder.
        split: Name of the file in its qrels/.
        queries: Number of queries, drawn at random; 0 for all.
        rounds: Number of timed searches, the fastest of which counts.

    Returns:
        A row for each system, and a table, which also has BM25 alone.
    """
    corpus, texts, qrels, *_ = read_beir(data, split)
    if 0 < queries < len(texts):
        names = np.random.default_rng(0).permutation(sorted(texts))[:queries].tolist()
        texts, qrels = ({name: x[name] for name in names} for x in (texts, qrels))
    # Texts are embedded once for each model and pooling
    embed = _cache_embeddings(list(texts.values()), list(corpus.values()))
    rows = []
    for system in systems:
        rows.append(_measure_system(system, embed, (corpus, texts, qrels), rounds))
        cli.log(f"{system}: nDCG@10 {rows[-1]['ndcg@10']:.2f}")
    header = ["system", "kind", "nDCG@10", "bytes per document", "queries/s"]
    cells = [
        [
            row["system"],
            row["kind"].replace("_", "-"),
            f"{row['ndcg@10']:.2f}",
            f"{row['bytes_per_document']:,.0f}",
            f"{row['queries_per_second']:,.0f}" if row["queries_per_second"] else "",
        ]
        for row in rows
    ]
    # The baseline, which is the same beside every system
    cells.append(["BM25", "words", f"{rows[0]['bm25']:.2f}", "", ""])
    table = markdown_table(header, cells)
    counts = {"documents": len(corpus), "queries": len(texts)}
    return {**counts, "rows": rows, "table": table}


def _cache_embeddings(queries: list[str], documents: list[str]) -> Callable:
    """A function (model, pooling) -> (similarity, {role: embeddings}), made once."""
    cache = {}

    def embed(model: str, pool: str) -> tuple[str, dict[str, Any]]:
        if (model, pool) not in cache:
            embedder = Embedder(load.load(model), pool=pool or None, allow_empty=True)
            texts = {"query": queries, "document": documents}
            vectors = {role: embedder(part, role) for role, part in texts.items()}
            cache[model, pool] = embedder.model.similarity, vectors
        return cache[model, pool]

    return embed


def _measure_system(system: str, embed: Callable, data, rounds: int) -> dict[str, Any]:
    """The row of one system; `data` is a corpus, queries and judgments."""
    corpus, queries, qrels = data
    name, _, hybrid = system.partition(" & ")
    name, _, transform = name.partition(" + ")
    name, _, pool = name.partition(" @ ")
    similarity, vectors = embed(name.strip(), pool.strip())
    # What is done to the vectors of tokens, if any
    if transform:
        change = parse_token_transform(transform, get_width(vectors["query"]))
        vectors = {role: change(x, role) for role, x in vectors.items()}
        similarity = "dot" if has_one_vector(transform) else similarity
    options = {"similarity": similarity, "hybrid": hybrid.strip(), "lexical": True}
    evaluate = ranking(corpus, queries, qrels, **options)
    scores = evaluate(lambda texts, role: vectors[role])
    # The fastest of several searches, after the one of the score
    seconds = []
    for _ in range(0 if hybrid else rounds):
        start = time.perf_counter()
        rank_documents(*vectors.values(), HITS, similarity=similarity)
        seconds.append(time.perf_counter() - start)
    documents = vectors["document"]
    return {
        "system": system,
        "kind": embedding_kind(documents),
        "similarity": similarity,
        "ndcg@10": scores["ndcg@10"],
        "bm25": scores["bm25"],
        "bytes_per_document": count_bytes(documents) / count_texts(documents),
        "queries_per_second": len(queries) / min(seconds) if seconds else None,
    }
