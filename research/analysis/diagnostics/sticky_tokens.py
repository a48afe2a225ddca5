"""Sticky tokens: tokens whose insertion pulls a sentence towards the typical vectors.

Repeated in a sentence, they raise its cosine with unrelated sentences (Chen et al.
2025, "Sticking to the Mean: Detecting Sticky Tokens in Text Embedding Models").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs, name_data
from research.analysis.diagnostics.insertions import (
    PLACES,
    InsertionTrial,
    SentencePair,
    embed_sentences,
    select_pairs,
    spread_pairs,
    sticky_scores,
)
from research.analysis.diagnostics.panels import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    escape_glyphs,
)
from research.analysis.diagnostics.vocabulary import list_reachable_tokens
from research.data.files import read_sts
from research.eval.bias.documents import check_count
from research.eval.figures import figure
from research.progress import show_progress
from research.types import EmbedFn

SCORE_PAIRS, CHECK_PAIRS = 5, 250  # pairs of sentences of the two phases
POOL_PAIRS = 1000  # pairs from which both are drawn, spread over the similarities
SHORTLIST = 0.02  # share of the tokens that are checked
STRONG, WEAK = 1 - 1 / (3 * np.e), 1 - 1 / np.e  # thresholds of the check
REFERENCE_TOKENS = 2000  # at least, for the mean cosine of all
TOKENS_PER_CALL = 16
SHOWN = 25  # tokens in the figure


def report_sticky_tokens(
    inputs: DiagnosticInputs,
    *,
    data: str = "",
    tokens: int = 400,
    words: tuple[str, ...] = (),
    sentences: int = 1000,
    pairs: int = CHECK_PAIRS,
) -> dict[str, Any]:
    """Tokens of the vocabulary that pull sentences together.

    The cost is 121 texts for a token, and 24 times `pairs` for one of the shortlist.

    Args:
        inputs: The model, and the texts if there is no `data`.
        data: File of sentence pairs, as for the task sts, whose sentences are used; ""
            for the texts of the corpus.
        tokens: Number of tokens of the vocabulary, drawn at random; 0 for all.
        words: Texts of further tokens, which are always checked.
        sentences: Number of sentences, drawn at random.
        pairs: Number of pairs of sentences on which the shortlist is checked.

    Returns:
        The record of `measure_sticky_tokens`, with "vocabulary", the number of tokens
        that texts can have, and "summary", the tokens with their share p.

    Raises:
        FileNotFoundError, ValueError: There are no sentences, or a word is no token.
    """
    # The sentences.
    if data:
        first, second, _ = read_sts(data)
        pool = sorted({text for text in (*first, *second) if text.strip()})
    else:
        pool = sorted(inputs.list_texts())
    rng = np.random.default_rng(inputs.seed)
    sample = [pool[i] for i in rng.permutation(len(pool))[:sentences]]
    # The texts of all tokens, and of those that are tried.
    vocabulary = [token.text for token in list_reachable_tokens(inputs.model.tokenizer)]
    if unknown := sorted(set(words) - set(vocabulary)):
        raise ValueError(f"{unknown[0]!r} is not the text of a token of this model")
    count = len(vocabulary)
    order = [vocabulary[i] for i in rng.permutation(count)]
    candidates = order[: tokens or count]
    # A sample gives the reference level of a sample.
    reference = order[: max(tokens, REFERENCE_TOKENS) if tokens else count]
    record = measure_sticky_tokens(
        inputs.make_embedder(),
        sample,
        reference,
        candidates,
        words,
        check_pairs=pairs,
        seed=inputs.seed,
    )
    # The tokens of each label, by falling share.
    checked = record["checked"]
    summary = {
        label: {row["token"]: row["p"] for row in checked if row["label"] == label}
        for label in ("strong", "weak")
    }
    record |= {"summary": summary, "vocabulary": count}
    return record | ({"data": name_data(data)} if data else {})


def measure_sticky_tokens(
    embed: EmbedFn,
    sentences: Sequence[str],
    vocabulary: Sequence[str],
    candidates: Sequence[str],
    words: Sequence[str] = (),
    *,
    score_pairs: int = SCORE_PAIRS,
    check_pairs: int = CHECK_PAIRS,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores candidates on a few pairs, and checks the best of them on many.

    Args:
        embed: Embed function that returns [N, D].
        sentences: Different sentences, from which pairs are made.
        vocabulary: Texts of the tokens whose mean cosine is the reference level.
        candidates: Texts of the tokens that are scored.
        words: Texts of tokens that are checked whatever their score is.
        score_pairs: Number of pairs for the scores.
        check_pairs: Number of pairs for the check.
        seed: Seed of the places of insertion.

    Returns:
        {"reference", the mean cosine of the vocabulary; "candidates", their number;
        "scores", {percentile: score}; "threshold", the smallest score of the
        shortlist; "checked", the shortlist and the words as rows "token", "score", "p",
        the share of pairs whose distance falls, and "label", by falling p; "strong",
        their number}.

    Raises:
        ValueError: There are too few sentences, or none are less similar than the
            reference level.
    """
    check_count(sentences, "different sentences")
    # Mean cosine of all V^2 pairs of tokens, those of a token with itself included.
    reference = float(np.sum(embed_sentences(embed, vocabulary).mean(0) ** 2))
    x = embed_sentences(embed, sentences)  # [N, D]
    pool = spread_pairs(x @ x.T, POOL_PAIRS)
    # Pairs of both phases: those that a pull can bring closer together.
    scored = select_pairs(pool, reference, score_pairs)
    checked = select_pairs(pool, reference, check_pairs)

    def to_sentences(pairs):
        return [SentencePair(sentences[i], sentences[j]) for i, j in pairs]

    # Phase 1: the scores of all candidates, and the shortlist.
    tokens = list(dict.fromkeys([*candidates, *words]))
    trial = InsertionTrial(embed, to_sentences(scored), seed)
    weights = np.array([weight for weight, _ in PLACES.values()])[:, None]
    scores = {}
    with show_progress("scoring tokens", len(tokens)) as advance:
        for start in range(0, len(tokens), TOKENS_PER_CALL):
            part = tokens[start : start + TOKENS_PER_CALL]
            values = sticky_scores(*trial.measure_cosine_distances(part))
            means = np.sum(values * weights, 1).mean(1)  # [tokens]
            scores |= dict(zip(part, means.tolist(), strict=True))
            advance(len(part))
    # Words that the caller names do not move the threshold.
    values = np.array([scores[token] for token in candidates])
    threshold = float(np.quantile(values, 1 - SHORTLIST))
    shortlist = [token for token in candidates if scores[token] >= threshold]
    shortlist = list(dict.fromkeys([*shortlist, *words]))
    # Phase 2: the check of the shortlist.
    trial = InsertionTrial(embed, to_sentences(checked), seed)
    rows = []
    with show_progress("checking tokens", len(shortlist)) as advance:
        for token in shortlist:
            p = trial.measure_share(token)
            label = "strong" if p > STRONG else "weak" if p >= WEAK else "rejected"
            row = {"token": token, "score": scores[token], "p": p, "label": label}
            rows.append(row)
            advance(1)
    percentiles = (0, 5, 25, 50, 75, 95, 98, 100)
    return {
        "reference": reference,
        "candidates": len(candidates),
        "scores": {str(q): float(np.percentile(values, q)) for q in percentiles},
        "threshold": threshold,
        "strong": sum(row["label"] == "strong" for row in rows),
        "checked": sorted(rows, key=lambda row: -row["p"]),
    }


def list_sticky_tokens(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: the tokens of the check, by falling share."""
    header = ["token", "sticky score", "p", ""]
    rows = [
        [repr(row["token"]), f"{row['score']:.2f}", f"{row['p']:.3f}", row["label"]]
        for row in record["checked"][:SHOWN]
    ]
    return [header, *rows]


def plot_sticky_tokens(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the shares p of the tokens of the check, as bars with both thresholds."""
    rows = record["checked"][:SHOWN]
    colors = {"strong": "C0", "weak": "C1", "rejected": "0.6"}
    size = 1.6 * PANEL_WIDTH, 1.6 + max(PANEL_HEIGHT / 2, 0.2 * len(rows))
    with figure(path, size, title=title) as (_, axes):
        labels = [row["token"] for row in rows]
        shares = [row["p"] for row in rows]
        bars = [colors[row["label"]] for row in rows]
        axes.barh(range(len(rows)), shares, color=bars)
        axes.set_yticks(range(len(rows)), map(escape_glyphs, labels))
        axes.invert_yaxis()
        for level, name in ((STRONG, "strong"), (WEAK, "weak")):
            axes.axvline(level, color=colors[name], ls="--", lw=1, label=name)
        axes.set(
            xlim=(0, 1),
            xlabel="share of pairs and places at which insertions pull together",
            title=f"{record['strong']} strong of {record['candidates']:,} tokens",
        )
        axes.legend(loc="lower left")
        axes.grid(alpha=0.3, axis="x")
