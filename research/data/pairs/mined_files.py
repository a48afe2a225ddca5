"""Training files with mined negatives: the texts of the examples, and their rows."""

import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.atomic_write import atomic_write, to_json
from research.data.examples import Example
from research.data.pairs.known_pairs import list_excluded_pairs

DIGITS = 6  # after the point of a score


class PairTexts(NamedTuple):
    """The different texts of examples and a corpus, and which belong together.

    Attributes:
        queries: {query: its index}.
        passages: {passage: its index}, those of the corpus first.
        positives: [P, 2] int64 the query and the passage of every positive, example by
            example.
        excluded: [E, 2] int64 further queries and passages that are no negatives
            (`list_excluded_pairs`).
    """

    queries: dict[str, int]
    passages: dict[str, int]
    positives: np.ndarray
    excluded: np.ndarray


def number_texts(examples: Sequence[Example], corpus: Iterable[str] = ()) -> PairTexts:
    """Numbers the different texts of examples and a corpus.

    Args:
        examples: The examples.
        corpus: Further passages.
    """
    positives = [text for example in examples for text in example.positives]
    passages = _index_texts([*corpus, *positives])
    queries = _index_texts(example.query for example in examples)
    pairs = [
        (queries[e.query], passages[text]) for e in examples for text in e.positives
    ]
    equal = [(i, passages[text]) for text, i in queries.items() if text in passages]
    # Examples without a group have one for each query
    names = [(e.group is None, e.group or e.query) for e in examples]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    excluded = list_excluded_pairs(
        np.array([numbers[name] for name in names]),
        np.array([queries[example.query] for example in examples]),
        _to_pairs(pairs),
        _to_pairs(equal),
    )
    return PairTexts(queries, passages, _to_pairs(pairs), excluded)


def make_mined_rows(
    examples: Sequence[Example],
    texts: PairTexts,
    negatives: np.ndarray,
    scores: np.ndarray,
    positive_scores: np.ndarray,
) -> list[dict[str, Any] | None]:
    """The rows of a training file: each example with its mined negatives.

    Args:
        examples: The examples.
        texts: Their texts, by `number_texts`.
        negatives: [Q, N] indices of each query's negatives among the passages; -1 where
            one is missing.
        scores: [Q, N] their scores.
        positive_scores: [P] scores of the positives, example by example.

    Returns:
        {column: value} for each example; None if negatives are missing. The column
        `scores` has those of the positives, then those of the negatives.
    """
    passages, rows, start = list(texts.passages), [], 0
    for example in examples:
        positives, query = example.positives, texts.queries[example.query]
        first, start = start, start + len(positives)
        if (negatives[query] < 0).any():
            rows.append(None)
            continue
        values = [*positive_scores[first:start], *scores[query]]
        row = {
            "query": example.query,
            "positive": list(positives) if positives[1:] else positives[0],
            "negative": [passages[number] for number in negatives[query]],
            "scores": [round(float(value), DIGITS) for value in values],
            "score": example.score,
            "group": example.group,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as a .jsonl or .jsonl.gz file, complete or not at all."""
    opener = gzip.open if Path(path).suffix == ".gz" else open
    with (
        atomic_write(path) as draft,
        opener(draft, "wt", encoding="utf-8") as file,
    ):
        for row in rows:
            file.write(to_json(row, ensure_ascii=False) + "\n")


def _index_texts(texts: Iterable[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def _to_pairs(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)
