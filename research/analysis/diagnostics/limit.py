"""LIMIT by width: what a model retrieves, and what vectors of the width could."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.free_embeddings import (
    find_critical_count,
    predict_critical_count,
)
from research.analysis.diagnostics.inputs import DiagnosticInputs, name_data
from research.analysis.diagnostics.panels import PANEL_HEIGHT, PANEL_WIDTH
from research.analysis.diagnostics.redundancy import choose_dims
from research.data.corpus import read_corpus
from research.eval.figures import figure
from research.eval.limit import JUDGED, LIKED, QUERIES, make_limit, score_limit
from research.eval.vector_cache import VectorCache, cut_embedder
from research.progress import show_progress

# Words of the corpus that serve as attributes: not the most frequent ones, which are
# not what somebody likes.
COMMON_WORDS = 300
ATTRIBUTES = 1848
MIN_WORD_LENGTH = 4


def report_limit(
    inputs: DiagnosticInputs,
    *,
    attributes: str = "",
    documents: int = JUDGED,
    queries: int = QUERIES,
    widths: tuple[int, ...] = (4, 6, 8),
) -> dict[str, Any]:
    """Recall on LIMIT by the number of dimensions, and the bound of free embeddings.

    Args:
        inputs: The model, and the texts if there are no `attributes`.
        attributes: A file with one thing that people like per line; "" for words of the
            corpus.
        documents: Number of documents, 46 to 50,000.
        queries: Number of queries.
        widths: Widths of free embeddings; () for none.

    Returns:
        {"documents"; "dims"; "scores": [dims] scores of `limit`; "critical": {width:
        the most documents whose pairs free embeddings of this width can retrieve};
        "accuracy": {width: {documents: accuracy}}; "published": {width: the paper's
        fit}}, with "summary", the scores of the full model and the critical numbers.

    Raises:
        FileNotFoundError, ValueError: The file is missing, or there are too few
            attributes.
    """
    if attributes:
        things = read_corpus(attributes)[1]
    else:
        things = list_attributes(inputs.list_texts())
    task = make_limit(things, documents=documents, queries=queries)
    evaluate = score_limit(task)
    # One embedding of all texts, cut to each number of dimensions.
    embed = inputs.make_embedder(normalize=False)
    cache, dims = VectorCache(embed), choose_dims(embed.width)
    scores = [
        evaluate(cut_embedder(cache, lambda x, d=dim: x[:, :d], normalize=True))
        for dim in dims
    ]
    # The most documents for each width of free embeddings.
    critical, accuracy = {}, {}
    with show_progress("training free embeddings", len(widths)) as advance:
        for width in widths:
            critical[str(width)], tries = find_critical_count(width)
            accuracy[str(width)] = {str(n): value for n, value in tries.items()}
            advance(1)
    published = {
        str(width): predict_critical_count(width) for width in (*widths, embed.width)
    }
    return {
        "summary": {**scores[-1], "critical": critical},
        **({"data": name_data(attributes)} if attributes else {}),
        "documents": documents,
        "dims": dims,
        "scores": [dict(cell) for cell in scores],
        "critical": critical,
        "accuracy": accuracy,
        "published": published,
    }


def list_attributes(texts: Sequence[str]) -> list[str]:
    """Frequent words of texts, without the most frequent ones: at most ATTRIBUTES.

    Args:
        texts: Texts of a corpus.
    """
    # Words in lower case are no names, whose documents would be found by them.
    pattern = re.compile(rf"\b[a-z]{{{MIN_WORD_LENGTH},}}\b")
    counts = Counter(word for text in texts for word in pattern.findall(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[COMMON_WORDS : COMMON_WORDS + max(ATTRIBUTES, QUERIES + LIKED)]


def list_limit(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: recalls and critical counts by dimensions."""
    names = _list_recalls(record)
    header = ["dimensions", *names, "critical documents", "published fit"]
    # The model's sizes, then widths of free embeddings that it does not have.
    rows = []
    for dim, scores in zip(record["dims"], record["scores"], strict=True):
        cells = [f"{scores[name]:.1f}" for name in names]
        rows.append([str(dim), *cells, *_format_counts(record, dim)])
    for width in record["critical"]:
        if int(width) not in record["dims"]:
            rows.append([width, *[""] * len(names), *_format_counts(record, width)])
    lexical = [""] * (len(names) - 1) + [f"{record['scores'][0]['bm25']:.1f}"]
    return [header, *rows, ["BM25", *lexical, "", ""]]


def plot_limit(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots recalls by dimensions, and critical numbers of documents by width."""
    columns = 2 if record["critical"] else 1
    size = max(1.5, columns) * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    title = f"{title}, {record['documents']:,} documents"
    with figure(path, size, columns=columns, title=title) as (_, panels):
        panels = np.atleast_1d(panels)
        names = _list_recalls(record)
        recalls = panels[0]
        for name in names:
            values = [scores[name] for scores in record["scores"]]
            recalls.plot(record["dims"], values, "o-", ms=4, label=name)
        lexical = record["scores"][0]["bm25"]
        label = f"BM25, {names[-1]}"
        recalls.axhline(lexical, color="0.4", ls="--", lw=1, label=label)
        recalls.set_xscale("log", base=2)
        powers = [dim for dim in record["dims"] if dim & (dim - 1) == 0]
        recalls.set_xticks(powers, map(str, powers))
        recalls.minorticks_off()
        recalls.set(title="The model", xlabel="leading dimensions", ylabel="recall, %")
        recalls.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
        # Free embeddings, and the published fit.
        for counts in panels[1:]:
            widths = [int(width) for width in record["critical"]]
            style = {"ms": 5, "label": "free embeddings, measured"}
            counts.plot(widths, list(record["critical"].values()), "o", **style)
            fit = [record["published"][str(width)] for width in widths]
            counts.plot(widths, fit, "--", color="0.4", label="published fit")
            counts.set_xticks(widths)
            counts.legend()
            counts.set(title="Vectors without texts", xlabel="width")
            counts.set_ylabel("documents whose pairs are all found")
        for axes in panels:
            axes.grid(alpha=0.3)


def _list_recalls(record: Mapping[str, Any]) -> list[str]:
    """Names of the recalls, by the number of documents."""
    names = (name for name in record["scores"][0] if name.startswith("recall@"))
    return sorted(names, key=lambda name: int(name.partition("@")[2]))


def _format_counts(record: Mapping[str, Any], width: int | str) -> list[str]:
    """The measured and the published critical number of a width, as cells."""
    measured = record["critical"].get(str(width))
    published = record["published"].get(str(width))
    return [
        "" if measured is None else f"{measured:,}",
        "" if published is None else f"{published:,.0f}",
    ]
