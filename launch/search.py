"""Searches a corpus: the best texts for a query, with their scores.

python -m launch.search --model=M --corpus=texts.txt --query="..."
"""

import textwrap

from absl import flags

from launch import cli, options
from research import index
from research.eval.corpus import read_corpus
from research.eval.embed import make_embedder
from research.eval.retrieval import unit

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
    model = options.model()
    embed = make_embedder(model.params, model.config, **options.embedding(model))
    query = unit(embed([QUERY.value], "query"))
    scores, rows = index.search(query, unit(embed(texts, "document")), HITS.value)
    hits = [
        {"id": names[row], "score": float(score), "text": texts[row]}
        for score, row in zip(scores[0], rows[0], strict=True)
    ]
    widest = max(len(hit["id"]) for hit in hits)
    for hit in hits:
        line = textwrap.shorten(hit["text"], 100, placeholder=" ...")
        print(f"{hit['score']:7.4f}  {hit['id']:>{widest}}  {line}")
    return {"query": QUERY.value, "hits": hits}


if __name__ == "__main__":
    cli.run(main)
