"""Command that searches a corpus: the best texts for a query, with their scores.

python -m launch.search --model=M --corpus=texts.txt --query="..." [--chunk="late(256)"]
python -m launch.search --model=M --corpus=FOLDER_OF_VECTORS --query="..."

With --chunk, the score of a text is that of its best chunk, which is printed.
--output=DIR/evals/search.md also writes the table into a run's folder, for its report.
"""

import textwrap
from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from launch.supervise import supervise
from research import processes
from research.atomic_write import atomic_write
from research.data.corpus import find_corpus, read_corpus, read_texts
from research.eval.tables import escape_markdown, markdown_page
from research.inference.search import embedding_kind, rank_documents
from research.inference.shares import split_over_processes
from research.inference.vector_shards import (
    MANIFEST,
    check_manifest,
    read_manifest,
    read_names,
    read_vectors,
)
from research.types import ChunkEmbeddings

CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "The texts: a .txt, .jsonl, .tsv or .csv file, a BEIR folder, or pydocs; or a "
    "folder of vectors that launch.embed wrote with the same options.",
    required=True,
)
QUERY = flags.DEFINE_string("query", None, "The text to search for.", required=True)
HITS = flags.DEFINE_integer("hits", 10, "The number of texts to print.", lower_bound=1)
OUTPUT = cli.define_path(
    "output",
    None,
    "A Markdown file for the table of texts. launch.report shows those in evals/ of a "
    "run.",
)
cli.group_flags("Search", CORPUS, QUERY, HITS)
cli.group_flags("Output", OUTPUT)


def main():
    """Prints a table of the best texts by the model's similarity, and returns them."""
    # Connect the processes before JAX is used.
    processes.initialize()
    if not QUERY.value.strip():
        raise ValueError("--query is empty: it needs a token")
    folder = Path(CORPUS.value).expanduser()
    is_embedded = (folder / MANIFEST).is_file()
    corpus = None if is_embedded else read_corpus(CORPUS.value)
    embedder = options.make_embedder(options.load_model(), options.parse_single_chunk())
    # The vectors of the corpus, made now or by launch.embed.
    if is_embedded:
        entries = {"role": "document", **options.describe_embedder(embedder)}
        check_manifest(folder, entries)
        documents = read_vectors(folder)
    else:
        documents = split_over_processes(embedder)(corpus[1], "document")
    # [1, hits] scores and indices of the best texts.
    query = embedder([QUERY.value], "query")
    similarity = embedder.model.similarity
    scores, rows = rank_documents(query, documents, HITS.value, similarity=similarity)
    rows = rows[0].tolist()
    if is_embedded:
        names, texts = _find_texts(folder, rows)
    else:
        names, texts = ({row: column[row] for row in rows} for column in corpus)
    hits = [
        {"id": names[row], "score": float(score), "text": texts[row]}
        for score, row in zip(scores[0], rows, strict=True)
    ]
    # Of chunked texts, show the best chunk.
    if embedding_kind(documents) == "multi_vector":
        for hit, row in zip(hits, rows, strict=True):
            hit |= _find_best_chunk(query, documents, row, texts[row], similarity)
    # The table on stdout.
    widest = max(len(hit["id"]) for hit in hits)
    for hit in hits:
        line = textwrap.shorten(hit["text"], 100, placeholder=" ...")
        characters = f"  {hit['start']}-{hit['end']}" if "start" in hit else ""
        print(f"{hit['score']:7.4f}  {hit['id']:>{widest}}{characters}  {line}")
    if OUTPUT.value and processes.is_first():
        with atomic_write(Path(OUTPUT.value)) as page:
            page.write_text(_format_markdown(hits), encoding="utf-8")
    return {"query": QUERY.value, "hits": hits}


def _format_markdown(hits: list[dict]) -> str:
    """A page with the query and the best texts."""
    rows = [
        [
            escape_markdown(textwrap.shorten(hit["text"], 300, placeholder=" ...")),
            escape_markdown(hit["id"]),
            f"{hit['score']:.4f}",
        ]
        for hit in hits
    ]
    title = f"Search: {escape_markdown(QUERY.value)}"
    return markdown_page(title, ["text", "id", "score"], rows)


def _find_texts(folder: Path, rows: list[int]) -> tuple[dict, dict]:
    """({row: name}, {row: text}) of some texts of a folder of vectors.

    Raises:
        ValueError: The files of the corpus have changed.
    """
    names, texts = read_names(folder, rows), {}
    files = [Path(file["path"]) for file in read_manifest(folder)["files"]]
    for row, text in enumerate(read_texts(find_corpus(files), allow_blank=True)):
        if row in names:
            texts[row] = text.text
            if text.name != names[row]:
                raise ValueError(f"{text.place} has changed since it was embedded")
    if missing := names.keys() - texts.keys():
        raise ValueError(f"{files[-1]} lacks {len(missing)} texts that were embedded")
    return names, texts


def _find_best_chunk(
    query: np.ndarray, chunks: ChunkEmbeddings, number: int, text: str, similarity: str
) -> dict:
    """The text and the range of characters of a text's best chunk."""
    # Rank the chunks of this text, which are adjacent, as if each were a document.
    numbers = np.flatnonzero(chunks.document_numbers == number)
    chunks_of_text = chunks._replace(
        vectors=chunks.vectors[int(numbers[0]) : int(numbers[-1]) + 1],
        document_numbers=np.arange(len(numbers)),
    )
    _, ranked = rank_documents(query, chunks_of_text, 1, similarity=similarity)
    best = numbers[ranked[0, 0]]
    start, end = int(chunks.start[best]), int(chunks.end[best])
    return {"text": text[start:end], "start": start, "end": end}


if __name__ == "__main__":
    supervise()
    cli.run(main)
