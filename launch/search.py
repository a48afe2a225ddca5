"""Searches a corpus: the best texts for a query, with their scores.

python -m launch.search --model=M --corpus=texts.txt --query="..." [--chunk="late(256)"]

With --chunk a text is as good as its best chunk, which is what is shown.
"""

import textwrap

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from research.data.corpus import read_corpus
from research.inference.search import rank_documents
from research.types import ChunkEmbeddings

CORPUS = flags.DEFINE_string(
    "corpus", None, "A jsonl or txt file, a BEIR folder, or pydocs.", required=True
)
QUERY = flags.DEFINE_string("query", None, "What to search for.", required=True)
HITS = flags.DEFINE_integer("hits", 10, "How many texts to print.", lower_bound=1)


def main():
    """Prints a table of the best texts by cosine; reports them too."""
    names, texts = read_corpus(CORPUS.value)
    if not QUERY.value.strip():
        raise ValueError("--query is empty: it needs a token")
    embed = options.embedder(options.model(), options.chunking())
    query, documents = embed([QUERY.value], "query"), embed(texts, "document")
    scores, rows = rank_documents(query, documents, HITS.value)
    hits = [
        {"id": names[row], "score": float(score), "text": texts[row]}
        for score, row in zip(scores[0], rows[0], strict=True)
    ]
    if isinstance(documents, ChunkEmbeddings):
        for hit, row in zip(hits, rows[0], strict=True):
            hit |= _best_chunk(query, documents, row, texts[row])
    widest = max(len(hit["id"]) for hit in hits)
    for hit in hits:
        line = textwrap.shorten(hit["text"], 100, placeholder=" ...")
        place = f"  {hit['start']}-{hit['end']}" if "start" in hit else ""
        print(f"{hit['score']:7.4f}  {hit['id']:>{widest}}{place}  {line}")
    return {"query": QUERY.value, "hits": hits}


def _best_chunk(
    query: np.ndarray, chunks: ChunkEmbeddings, number: int, text: str
) -> dict:
    """The chunk of a text that is nearest to the query, and its characters."""
    own = np.flatnonzero(chunks.document_numbers == number)
    inside = chunks._replace(vectors=chunks.vectors[own], document=np.arange(len(own)))
    best = own[rank_documents(query, inside, 1)[1][0, 0]]
    start, end = int(chunks.start[best]), int(chunks.end[best])
    return {"text": text[start:end], "start": start, "end": end}


if __name__ == "__main__":
    cli.run(main)
