"""Command that searches a corpus: the best texts for a query, with their scores.

python -m launch.search --model=M --corpus=texts.txt --query="..." [--chunk="late(256)"]

With --chunk, the score of a text is that of its best chunk, which is printed.
"""

import textwrap

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from research.data.corpus import read_corpus
from research.inference.search import embedding_kind, rank_documents
from research.types import ChunkEmbeddings

CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "The texts: a .txt or .jsonl file, a BEIR folder, or pydocs.",
    required=True,
)
QUERY = flags.DEFINE_string("query", None, "The text to search for.", required=True)
HITS = flags.DEFINE_integer("hits", 10, "The number of texts to print.", lower_bound=1)


def main():
    """Prints a table of the best texts by cosine, and returns them."""
    names, texts = read_corpus(CORPUS.value)
    if not QUERY.value.strip():
        raise ValueError("--query is empty: it needs a token")
    embedder = options.make_embedder(options.load_model(), options.parse_single_chunk())
    query, documents = embedder([QUERY.value], "query"), embedder(texts, "document")
    # [1, hits] scores and indices of the best texts.
    scores, rows = rank_documents(query, documents, HITS.value)
    hits = [
        {"id": names[row], "score": float(score), "text": texts[row]}
        for score, row in zip(scores[0], rows[0], strict=True)
    ]
    # Of chunked texts, show the best chunk.
    if embedding_kind(documents) == "multi_vector":
        for hit, row in zip(hits, rows[0], strict=True):
            hit |= _find_best_chunk(query, documents, row, texts[row])
    # The table on stdout.
    widest = max(len(hit["id"]) for hit in hits)
    for hit in hits:
        line = textwrap.shorten(hit["text"], 100, placeholder=" ...")
        characters = f"  {hit['start']}-{hit['end']}" if "start" in hit else ""
        print(f"{hit['score']:7.4f}  {hit['id']:>{widest}}{characters}  {line}")
    return {"query": QUERY.value, "hits": hits}


def _find_best_chunk(
    query: np.ndarray, chunks: ChunkEmbeddings, number: int, text: str
) -> dict:
    """The text and the range of characters of a text's best chunk."""
    # Rank the chunks of this text as if each were a document.
    numbers = np.flatnonzero(chunks.document_numbers == number)
    chunks_of_text = chunks._replace(
        vectors=chunks.vectors[numbers], document_numbers=np.arange(len(numbers))
    )
    best = numbers[rank_documents(query, chunks_of_text, 1)[1][0, 0]]
    start, end = int(chunks.start[best]), int(chunks.end[best])
    return {"text": text[start:end], "start": start, "end": end}


if __name__ == "__main__":
    cli.run(main)
