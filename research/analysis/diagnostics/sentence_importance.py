"""Sentence importance: how much each sentence of a document contributes to its vector.

A document's embedding is regressed on the embeddings of its sentences, and the
coefficients are regressed on the sentences' positions. A falling line is a bias towards
the start (Lee et al. 2024, "Quantifying Positional Biases in Text Embedding Models").
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np
import scipy

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import PANEL_HEIGHT, PANEL_WIDTH
from research.eval.bias.documents import MIN_DOCUMENTS, check_count
from research.eval.figures import figure
from research.text.chunk_rows import SENTENCE_END
from research.types import EmbedFn

# Smallest numbers of sentences of the groups of documents; each ends where the next one
# begins.
GROUPS = (5, 15, 25, 35, 45, 55, 65)
BINS = 10  # of positions, in the figure
# Documents that are drawn for each one that is needed; those that are too long for the
# model are left out.
SPARE = 5
VARIANTS = {"as_written": "as written", "shuffled": "sentences shuffled"}


class SentenceRegression(NamedTuple):
    """The regression of a document's vector on its sentences' vectors.

    Attributes:
        importances: [S] coefficients, scaled to length 1.
        r2: Coefficient of determination, as scikit-learn defines it.
        rank: Rank of the sentences' vectors; below S they are collinear.
    """

    importances: np.ndarray
    r2: float
    rank: int


def regress_document(sentences: np.ndarray, document: np.ndarray) -> SentenceRegression:
    """Least squares without intercept of a document's vector on its sentences'.

    R^2 is 1 - RSS / sum (y - mean(y))^2, centered although there is no intercept.

    Args:
        sentences: [S, D] vectors of the sentences.
        document: [D] vector of the document.

    Raises:
        ValueError: There are as many sentences as dimensions, or more.
    """
    x, y = np.asarray(sentences, np.float64), np.asarray(document, np.float64)
    chex.assert_rank([x, y], [2, 1])
    if len(x) >= len(y):
        raise ValueError(
            f"a document of {len(x)} sentences has no unique importances in "
            f"{len(y)} dimensions: there must be fewer sentences"
        )
    # Singular values give the rank; collinear sentences share their importance.
    coefficients, _, rank, _ = np.linalg.lstsq(x.T, y, rcond=None)  # [S]
    residual = np.sum((y - coefficients @ x) ** 2)
    r2 = 1 - residual / max(np.sum((y - y.mean()) ** 2), 1e-12)
    norm = max(np.linalg.norm(coefficients), 1e-12)
    return SentenceRegression(coefficients / norm, float(r2), int(rank))


def report_sentence_importance(
    inputs: DiagnosticInputs, *, documents: int = 100
) -> dict[str, Any]:
    """Slopes of the sentences' importances over their positions.

    Args:
        inputs: The model and the texts.
        documents: Largest number of documents in each group.

    Returns:
        {"groups": {number of sentences: record of `measure_sentence_importance`, with
        "too_long", the share of documents that were left out because the model would
        truncate them}}, with "summary", the slopes {number of sentences: {variant:
        slope}}.

    Raises:
        ValueError: The corpus gives no group of documents that fit the model.
    """
    # Each group is measured by itself: importances shrink with more sentences.
    groups = split_groups(inputs.list_texts(), SPARE * documents, inputs.seed)
    embed = inputs.make_embedder()
    room, tokenizer = inputs.document_room(), inputs.model.tokenizer
    record: dict[str, Any] = {"groups": {}}
    for name, members in groups.items():
        # The end of a truncated document would have no importance at all.
        texts = [" ".join(sentences) for sentences in members]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        fits = [len(encoding.ids) <= room for encoding in encodings]
        complete = [
            d for d, is_complete in zip(members, fits, strict=True) if is_complete
        ]
        if len(complete) < MIN_DOCUMENTS:
            continue
        # So many sentences have no unique importances.
        if max(map(len, complete)) >= embed.width:
            continue
        result = measure_sentence_importance(
            embed, complete[:documents], seed=inputs.seed
        )
        record["groups"][name] = {"too_long": 1 - float(np.mean(fits)), **result}
    if not record["groups"]:
        raise ValueError(
            f"fewer than {MIN_DOCUMENTS} documents of {GROUPS[0]} sentences or more "
            f"fit into the model's {room} tokens and have fewer sentences than its "
            f"{embed.width} dimensions: give a corpus with shorter sentences"
        )
    summary = {
        name: {variant: group[variant]["slope"] for variant in VARIANTS}
        for name, group in record["groups"].items()
    }
    return {"summary": summary, **record}


def split_groups(
    texts: Sequence[str], count: int, seed: int = 0
) -> dict[str, list[list[str]]]:
    """Documents by their number of sentences, joined from neighboring texts.

    Args:
        texts: Texts in the order of the corpus, such as paragraphs.
        count: Largest number of documents in a group.
        seed: Seed of the places at which documents begin.

    Returns:
        {"5-14": documents as lists of sentences}, groups with MIN_DOCUMENTS or more
        only. Documents of a group share no text.

    Raises:
        ValueError: There is no such group.
    """
    split_texts = [split_sentences(text) for text in texts]
    rng = np.random.default_rng(seed)
    groups = {}
    for low, high in pairwise(GROUPS):
        # Walk through the corpus, and begin a new document when one is long enough.
        members, sentences, target = [], [], rng.integers(low, high)
        for part in split_texts:
            sentences = [*sentences, *part]
            if len(sentences) >= target:
                members.append(sentences[: high - 1])
                sentences, target = [], rng.integers(low, high)
        order = rng.permutation(len(members))[:count]
        if len(members) >= MIN_DOCUMENTS:
            groups[f"{low}-{high - 1}"] = [members[i] for i in order]
    if not groups:
        raise ValueError(
            f"the corpus has fewer than {MIN_DOCUMENTS} documents of {GROUPS[0]} "
            "sentences: give more text"
        )
    return groups


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, those without a letter or digit left out."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    bounds = zip([0, *ends], [*ends, len(text)], strict=True)
    sentences = [text[start:end].strip() for start, end in bounds]
    return [s for s in sentences if any(map(str.isalnum, s))]


def measure_sentence_importance(
    embed: EmbedFn, documents: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Any]:
    """Importance of sentences by position, as written and with shuffled sentences.

    As written, the beginnings of documents may be their most important parts. With
    shuffled sentences, a slope is due to the model.

    Args:
        embed: Embed function that returns [N, D].
        documents: Documents as lists of sentences.
        seed: Seed of the shuffling.

    Returns:
        {"documents", "sentences": their mean number, and for "as_written" and
        "shuffled": "slope", "intercept", "p" of the regression of all importances on
        positions in [0, 1), "slope_error", the mean "r2" of the documents, "collinear",
        the share of documents with collinear sentences, and "by_position", the mean
        importances in BINS equal parts of a document}.

    Raises:
        ValueError: There are too few documents, or more sentences than dimensions.
    """
    check_count(documents, "documents")
    rng = np.random.default_rng(seed)
    shuffled = [[d[i] for i in rng.permutation(len(d))] for d in documents]
    # One call for all sentences: {sentence: vector [D]}.
    sentences = list(dict.fromkeys(s for document in documents for s in document))
    table = dict(zip(sentences, embed(sentences, "document"), strict=True))
    counts = [len(document) for document in documents]
    record = {"documents": len(documents), "sentences": float(np.mean(counts))}
    # A document's vector is that of its text, and regressed on those of its sentences.
    for variant, members in zip(VARIANTS, (documents, shuffled), strict=True):
        vectors = embed([" ".join(d) for d in members], "document")  # [N, D]
        fits = [
            regress_document(np.stack([table[s] for s in d]), y)
            for d, y in zip(members, vectors, strict=True)
        ]
        record[variant] = _fit_positions(members, fits)
    return record


def list_sentence_importance(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: a slope for each group and variant."""
    header = ["sentences", "documents", "order", "slope", "p", "R^2", "too long"]
    # Two rows for each group, with the 95 % interval of the slope.
    rows = []
    for name, group in record["groups"].items():
        for variant, label in VARIANTS.items():
            fit = group[variant]
            slope = f"{fit['slope']:+.3f} ± {1.96 * fit['slope_error']:.3f}"
            cells = [slope, f"{fit['p']:.2g}", f"{fit['r2']:.3f}"]
            share = f"{100 * group['too_long']:.0f} %"
            rows.append([name, str(group["documents"]), label, *cells, share])
    return [header, *rows]


def plot_sentence_importance(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots importances by position, a panel for each variant, with fitted lines."""
    size = 2 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    with figure(path, size, columns=2, title=title, sharey=True) as (_, panels):
        for axes, (variant, label) in zip(panels, VARIANTS.items(), strict=True):
            # Means as points, the regression of all sentences as a line.
            for name, group in record["groups"].items():
                fit = group[variant]
                centers = (np.arange(BINS) + 0.5) / BINS
                text = f"{name} sentences: slope {fit['slope']:+.2f}"
                (line,) = axes.plot(centers, fit["by_position"], "o", ms=4, label=text)
                ends = np.array([0, 1])
                fitted = fit["intercept"] + fit["slope"] * ends
                axes.plot(ends, fitted, color=line.get_color(), lw=1.2)
            axes.set(title=label.capitalize(), xlabel="position in the document")
            axes.legend()
            axes.grid(alpha=0.3)
        panels[0].set(ylabel="importance of a sentence")


def _fit_positions(
    documents: Sequence[Sequence[str]], fits: Sequence[SentenceRegression]
) -> dict[str, Any]:
    """The line of all importances over positions, and their means by position."""
    # [sentences of all documents] positions: first character / length of the document
    positions = []
    for document in documents:
        lengths = np.array([len(sentence) + 1 for sentence in document])
        positions.append((np.cumsum(lengths) - lengths) / (lengths.sum() - 1))
    x = np.concatenate(positions)
    y = np.concatenate([fit.importances for fit in fits])
    line = scipy.stats.linregress(x, y)
    # Means by position; a part without sentences has none.
    parts = np.minimum((BINS * x).astype(int), BINS - 1)
    means = [y[parts == k].mean() if np.any(parts == k) else None for k in range(BINS)]
    ranks = zip(documents, fits, strict=True)
    return {
        "slope": float(line.slope),
        "intercept": float(line.intercept),
        "p": float(line.pvalue),
        "slope_error": float(line.stderr),
        "r2": float(np.mean([fit.r2 for fit in fits])),
        "collinear": float(np.mean([fit.rank < len(d) for d, fit in ranks])),
        "by_position": [None if mean is None else float(mean) for mean in means],
    }
