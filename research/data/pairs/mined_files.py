"""Training files with mined negatives: the texts of the examples, and their rows."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.atomic_write import atomic_write, open_gzip, to_json
from research.data.examples import Example
from research.data.pairs.known_pairs import number_pairs

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
    documents = [*corpus]
    first_positive = len(documents)
    documents += [text for example in examples for text in example.positives]
    # [E, 2] example and document of each positive
    owners = [i for i, e in enumerate(examples) for _ in e.positives]
    places = range(first_positive, len(documents))
    # Equal texts have equal keys, of queries and documents alike
    keys: dict[Hashable, int] = {}
    pairs = number_pairs(
        _make_keys(keys, (example.query for example in examples)),
        _make_keys(keys, documents),
        np.array([*zip(owners, places, strict=True)], np.int64).reshape(-1, 2),
        # Examples without a group have one for each query
        _make_keys({}, ((e.group is None, e.group or e.query) for e in examples)),
    )
    queries = (examples[i].query for i in pairs.queries)
    passages = (documents[i] for i in pairs.documents)
    return PairTexts(
        *({text: i for i, text in enumerate(texts)} for texts in (queries, passages)),
        pairs.positives,
        pairs.excluded,
    )


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
    is_packed = Path(path).suffix == ".gz"
    with (
        atomic_write(path) as draft,
        open_gzip(draft) if is_packed else open(draft, "w", encoding="utf-8") as file,
    ):
        for row in rows:
            file.write(to_json(row, ensure_ascii=False) + "\n")


def _make_keys(keys: dict[Hashable, int], values: Iterable[Hashable]) -> np.ndarray:
    """The keys [N] of values, new ones of which are added to `keys`."""
    return np.array([keys.setdefault(value, len(keys)) for value in values], np.int64)
