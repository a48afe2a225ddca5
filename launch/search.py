"""Command that searches a corpus: the best texts for a query, with their scores.

python -m launch.search --model=M --corpus=texts.txt --query="..." [--chunk="late(256)"]
python -m launch.search --model=M --index=DIR --query="..." [--query="..."]
python -m launch.search --model=M --index=DIR --queries=queries.jsonl --hits=100
python -m launch.search --model=M --corpus=texts.txt --query="..." --hybrid="rrf(k=60)"
python -m launch.search --model=M --index=DIR --query="..." \\
    --rerank_model=OTHER --rerank_index=DIR

With --index, the texts are not embedded again. With --chunk, the score of a text is
that of its best chunk, which is printed. --output=DIR/evals/search.md also writes the
tables into a run's folder, for its report.
"""

import textwrap
from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from launch.embed_folder import read_folder_transform
from launch.search_rerank import CANDIDATES, check_rerank, rerank
from launch.search_texts import find_texts, read_all_texts
from launch.supervise import supervise
from research import processes
from research.atomic_write import atomic_write
from research.data.corpus import read_corpus
from research.eval.bm25 import bm25
from research.eval.tables import escape_markdown, markdown_page
from research.inference.fusion import fuse_rankings, parse_fusion
from research.inference.index.faiss_index import has_index, search_index
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.vector_shards import (
    check_manifest,
    read_manifest,
    read_vectors,
)
from research.inference.search import rank_documents
from research.inference.shares import split_over_processes
from research.types import MultiVectors

CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "The texts: a .txt, .jsonl, .tsv or .csv file, a BEIR folder, or pydocs.",
)
INDEX = flags.DEFINE_string(
    "index",
    None,
    "The folder that launch.index, or launch.embed, wrote with the same options.",
)
QUERY = flags.DEFINE_multi_string(
    "query", [], "The text to search for. The flag may be repeated."
)
QUERIES = flags.DEFINE_string(
    "queries",
    None,
    "The texts to search for: a file as for --corpus, with a query in each line.",
)
HITS = flags.DEFINE_integer("hits", 10, "The number of texts to print.", lower_bound=1)
EXACT = flags.DEFINE_bool(
    "exact", False, "Whether all vectors of --index are searched, without faiss."
)
FAISS_OPTIONS = flags.DEFINE_string(
    "faiss_options",
    "",
    "Parameters of faiss's search: nprobe=16 for IVF, or efSearch=64 for HNSW.",
)
HYBRID = flags.DEFINE_string(
    "hybrid",
    None,
    "The fusion with the ranking by BM25, which reads all texts into memory: rrf, "
    "rrf(k=60) or weighted(alpha=0.5), where alpha is the weight of the vectors.",
)
OUTPUT = cli.define_path(
    "output",
    None,
    "A Markdown file for the tables of texts. launch.report shows those in evals/ of a "
    "run.",
)
cli.group_flags("Search", CORPUS, INDEX, QUERY, QUERIES, HITS)
cli.group_flags("Search", EXACT, FAISS_OPTIONS, HYBRID)
cli.group_flags("Output", OUTPUT)
# The fewest documents of each ranking that are fused.
MIN_CANDIDATES = 100


def main():
    """Prints a table of the best texts by the model's similarity, and returns them."""
    # Connect the processes before JAX is used.
    processes.initialize()
    if (CORPUS.value is None) == (INDEX.value is None):
        raise ValueError("search takes either --corpus or --index")
    queries = _read_queries()
    fusion = parse_fusion(HYBRID.value) if HYBRID.value else None
    folder = Path(INDEX.value).expanduser() if INDEX.value else None
    is_reranked = check_rerank(folder, fusion is not None)
    corpus = None if folder else read_corpus(CORPUS.value)
    transform = None
    if folder is not None:
        read_manifest(folder)
        transform = read_folder_transform(folder)
    # An index of faiss answers, if there is one
    use_faiss = folder is not None and has_index(folder) and not EXACT.value
    if FAISS_OPTIONS.value and not use_faiss:
        raise ValueError(
            f"--faiss_options={FAISS_OPTIONS.value} goes with an --index that "
            "launch.index built with --faiss, and not with --exact"
        )
    embedder = options.make_embedder(
        options.load_model(), options.parse_single_chunk(), transform=transform
    )
    # The vectors of the corpus, made now or before.
    if folder is not None:
        entries = {"role": "document", **options.describe_embedder(embedder)}
        check_manifest(folder, entries)
        documents = read_vectors(folder)
    else:
        documents = split_over_processes(embedder)(corpus[1], "document")
        documents = store_vectors(documents, embedder.model.quantizer)
    # [Q, hits] scores and indices of the best texts.
    vectors = embedder(queries, "query")
    similarity = embedder.model.similarity
    count = HITS.value if fusion is None else max(MIN_CANDIDATES, 10 * HITS.value)
    if is_reranked:
        count = max(count, CANDIDATES.value)
    if use_faiss:
        ranking = search_index(
            folder,
            *(vectors, documents, count),
            similarity=similarity,
            options=FAISS_OPTIONS.value,
        )
    else:
        ranking = rank_documents(vectors, documents, count, similarity=similarity)
    # Ranked by another model, or fused with BM25: [Q, hits]
    if is_reranked:
        ranking = rerank(queries, ranking[1], HITS.value)
    if fusion is not None:
        texts = read_all_texts(folder) if corpus is None else corpus[1]
        rankings = [ranking, bm25(queries, texts, count)]
        ranking = fuse_rankings(fusion, rankings, HITS.value)
    scores, rows = ranking
    if folder is not None:
        names, texts = find_texts(folder, set(rows[rows >= 0].tolist()))
    else:
        names, texts = corpus
    # The hits of each query, with their texts
    results = []
    for i, query in enumerate(queries):
        hits = []
        for score, row in zip(scores[i], rows[i].tolist(), strict=True):
            if row < 0:  # faiss found fewer
                break
            hit = {"id": names[row], "score": float(score), "text": texts[row]}
            # Of chunked texts, show the best chunk.
            if isinstance(documents, MultiVectors) and documents.start is not None:
                query_vector = vectors[i : i + 1]
                hit |= _find_best_chunk(
                    query_vector, documents, row, texts[row], similarity
                )
            hits.append(hit)
        results.append({"query": query, "hits": hits})
    for result in results:
        _print_hits(**result, title=len(results) > 1)
    if OUTPUT.value and processes.is_first():
        pages = [_format_markdown(**result) for result in results]
        with atomic_write(Path(OUTPUT.value)) as draft:
            draft.write_text("\n".join(pages), encoding="utf-8")
    return results[0] if len(results) == 1 else {"results": results}


def _read_queries() -> list[str]:
    """The texts of --query and --queries."""
    if any(not query.strip() for query in QUERY.value):
        raise ValueError("--query is empty: it needs a token")
    queries = list(QUERY.value)
    if QUERIES.value is not None:
        queries += read_corpus(QUERIES.value)[1]
    if not queries:
        raise ValueError("search needs --query or --queries")
    return queries


def _print_hits(query: str, hits: list[dict], *, title: bool) -> None:
    """Prints the table of a query on stdout."""
    if title:
        print(textwrap.shorten(query, 100, placeholder=" ..."))
    widest = max((len(hit["id"]) for hit in hits), default=0)
    for hit in hits:
        line = textwrap.shorten(hit["text"], 100, placeholder=" ...")
        characters = f"  {hit['start']}-{hit['end']}" if "start" in hit else ""
        print(f"{hit['score']:7.4f}  {hit['id']:>{widest}}{characters}  {line}")


def _format_markdown(query: str, hits: list[dict]) -> str:
    """A page with a query and its best texts."""
    rows = [
        [
            escape_markdown(textwrap.shorten(hit["text"], 300, placeholder=" ...")),
            escape_markdown(hit["id"]),
            f"{hit['score']:.4f}",
        ]
        for hit in hits
    ]
    title = f"Search: {escape_markdown(query)}"
    return markdown_page(title, ["text", "id", "score"], rows)


def _find_best_chunk(
    query: np.ndarray, chunks: MultiVectors, number: int, text: str, similarity: str
) -> dict:
    """The text and the range of characters of a text's best chunk."""
    # Rank the chunks of this text, which are adjacent, as if each were a document.
    first, stop = map(int, chunks.offsets[number : number + 2])
    vectors = chunks.vectors[first:stop]
    _, ranked = rank_documents(query, vectors, 1, similarity=similarity)
    best = first + ranked[0, 0]
    start, end = int(chunks.start[best]), int(chunks.end[best])
    return {"text": text[start:end], "start": start, "end": end}


if __name__ == "__main__":
    supervise()
    cli.run(main)
