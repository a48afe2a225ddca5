"""The report of MEXA: how well each depth aligns other languages with a pivot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from research.analysis.diagnostics.inputs import DiagnosticInputs, name_data
from research.analysis.diagnostics.panels import PANEL_HEIGHT, PANEL_WIDTH
from research.eval.bias.mexa import read_languages, score_translations
from research.eval.figures import choose_line_style, figure
from research.progress import show_progress
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn


def report_mexa(
    inputs: DiagnosticInputs,
    *,
    data: str,
    sentences: int = 100,
    retrieval: int = 900,
) -> dict[str, Any]:
    """MEXA by depth and language, and its correlation with bitext retrieval.

    The paper pools by the weighted mean (--pool=weighted_mean) or by the last token.

    Args:
        inputs: The model.
        data: A file of translations with the fields sentence1 and sentence2, the pivot;
            or a pattern such as "tatoeba/*-eng.jsonl.gz".
        sentences: Number of sentences, the first ones of each file, for MEXA.
        retrieval: Number of the sentences after them that are the retrieval task; 0
            for no such task. A language with fewer sentences than MEXA's has none.

    Returns:
        The record of `measure_mexa`, with "summary", MEXA at its best depth {language:
        MEXA}, and the correlations.

    Raises:
        FileNotFoundError, ValueError: A file is missing or malformed, or the retrieval
            task has fewer sentences than MEXA.
    """
    if 0 < retrieval < sentences:
        raise ValueError(
            f"mexa of {sentences} sentences with retrieval={retrieval}: the retrieval "
            f"task needs as many, or 0 for none"
        )
    last = sentences + retrieval
    pairs = {
        name: (first[:last], second[:last])
        for name, (first, second) in read_languages(data).items()
    }
    record = measure_mexa(inputs.make_depth_embedder(), pairs, sentences)
    best = {name: max(values) for name, values in record["mexa"].items()}
    summary = {"best_depth": best, "correlation": record["correlation"]}
    return {"summary": summary, "data": name_data(data), **record}


def measure_mexa(
    embed: EmbedFn,
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    sentences: int,
) -> dict[str, Any]:
    """MEXA at every depth, and bitext retrieval at the last one.

    Args:
        embed: Embed function that returns [N, K, D] for K depths.
        pairs: {language: (sentences, their translations into the pivot language)}.
        sentences: Number of sentences for MEXA, the first ones.

    Returns:
        {"sentences"; "mexa", {language: MEXA by depth}; "retrieval", {language: share
        of the other sentences whose nearest sentence of the pivot language is the
        translation}; and "correlation", {"mean", "max": Pearson's correlation over the
        languages of the mean or largest MEXA of all depths with retrieval}}. The last
        two are empty without other sentences or with fewer than three languages.

    Raises:
        ValueError: A language has fewer than two sentences.
    """
    scores, retrieval = {}, {}
    total = sum(len(first) for first, _ in pairs.values())
    with show_progress("embedding translations", total) as advance:
        for language, (first, second) in pairs.items():
            if min(sentences, len(first)) < 2:
                raise ValueError(
                    f"{language}: MEXA of {min(sentences, len(first))} sentences is "
                    "undefined: give 2 or more"
                )
            x, y = embed(first, "query"), embed(second, "query")  # [N, K, D]
            scores[language] = [
                score_translations(y[:sentences, k], x[:sentences, k])
                for k in range(x.shape[1])
            ]
            # The retrieval task has sentences of its own, as many as MEXA or more.
            if len(first) >= 2 * sentences:
                a, b = (l2_normalize_rows(v[sentences:, -1]) for v in (x, y))
                hits = np.argmax(a @ b.T, 1) == np.arange(len(a))
                retrieval[language] = float(hits.mean())
            advance(len(first))
    return {
        "sentences": sentences,
        "mexa": scores,
        "retrieval": retrieval,
        "correlation": _correlate(scores, retrieval),
    }


def list_mexa(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per language."""
    header = ["language", "MEXA, mean of depths", "largest", "at depth", "last"]
    rows = []
    # A language per row; MEXA of the last depth is that of the embeddings.
    for language, values in record["mexa"].items():
        cells = [np.mean(values), max(values)]
        depth = str(int(np.argmax(values)))
        row = [f"{value:.3f}" for value in cells] + [depth, f"{values[-1]:.3f}"]
        rows.append([language, *row])
    if record["retrieval"]:
        header.append("retrieval")
        # A language with few sentences has none left for it.
        scores = [record["retrieval"].get(language) for language in record["mexa"]]
        cells = ["" if score is None else f"{score:.3f}" for score in scores]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    if record["correlation"]:
        cells = [f"{record['correlation'][name]:.3f}" for name in ("mean", "max")]
        rows.append(["correlation with retrieval", *cells, "", "", ""])
    return [header, *rows]


def plot_mexa(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots MEXA by depth, and retrieval over the mean MEXA if it was measured."""
    columns = 2 if record["retrieval"] else 1
    size = columns * PANEL_WIDTH + 0.8, 0.6 + PANEL_HEIGHT
    # A language has one color and one marker in both panels.
    styles = {name: choose_line_style(i) for i, name in enumerate(record["mexa"])}
    with figure(path, size, columns=columns, title=title, squeeze=False) as (_, panels):
        by_depth = panels[0, 0]
        for language, values in record["mexa"].items():
            style = {"ms": 3, "label": language, **styles[language]}
            by_depth.plot(range(len(values)), values, **style)
        by_depth.set(xlabel="depth (0: embedding layer)", ylabel="MEXA", ylim=(0, None))
        by_depth.legend(fontsize="small")
        by_depth.grid(alpha=0.3)
        if not record["retrieval"]:
            return
        # A point for each language, in the color of its curve.
        for language, score in record["retrieval"].items():
            mean = np.mean(record["mexa"][language])
            panels[0, 1].plot(mean, score, **styles[language])
        panels[0, 1].set(xlabel="MEXA, mean of depths", ylabel="accuracy")
        heading = "Retrieval of translations"
        if record["correlation"]:
            heading += f", correlation {record['correlation']['mean']:.2f}"
        panels[0, 1].set_title(heading)
        panels[0, 1].grid(alpha=0.3)


def _correlate(
    scores: Mapping[str, Sequence[float]], retrieval: Mapping[str, float]
) -> dict[str, float]:
    """Pearson's correlations over languages; {} where they are undefined."""
    if len(retrieval) < 3 or np.ptp(list(retrieval.values())) == 0:
        return {}
    # The two ways to summarize depths that the paper compares.
    result = {}
    for name, aggregate in (("mean", np.mean), ("max", max)):
        values = [aggregate(scores[language]) for language in retrieval]
        if np.ptp(values) > 0:
            pearson = scipy.stats.pearsonr(values, list(retrieval.values()))
            result[name] = float(pearson.statistic)
    return result if len(result) == 2 else {}
