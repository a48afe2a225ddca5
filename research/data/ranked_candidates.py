"""Queries whose positive and negative an external model chose among candidates."""

from collections.abc import Sequence

import numpy as np

from research.config_sections import check_option
from research.data.examples import Example, LoadedExamples
from research.data.fields import Record
from research.data.files import read_records


def load_ranked_candidates(*, path: str, negative: str = "lowest") -> LoadedExamples:
    """Queries with the best of their candidates as positive (Gecko, Lee et al. 2024).

    A row has a generated `query`, the `seed` passage that it was generated from,
    `candidates` that a retriever found, and for each of these a score in
    `query_likelihood` and one in `relevance`, by a language model. The positive is the
    candidate with the highest sum of reciprocal ranks, in which the seed wins ties. A
    seed that was not found is the last candidate, below all others. With a column
    `task`, the query is "task: TASK | query: QUERY". The details of the paper's fusion
    and prompt are not verified.

    Args:
        path: A jsonl file.
        negative: Hard negative: "lowest", the candidate of the lowest rank, or
            "others", one of all candidates but the positive, drawn in each step.

    Raises:
        ValueError: A column is missing, or there is not a score for each candidate.
    """
    check_option("negative", negative, ("lowest", "others"))
    examples = []
    for line, values in read_records(path):
        record = Record(f"{path} line {line}", values)
        query, seed = record.read_text("query"), record.read_text("seed")
        if record.has("task"):
            query = f"task: {record.read_text('task')} | query: {query}"
        candidates = list(record.read_texts("candidates"))
        lists = [_read_scores(record, name, len(candidates)) for name in SCORES]
        # A seed without scores is below all that have some
        if seed not in candidates:
            candidates.append(seed)
            lists = [[*scores, -np.inf] for scores in lists]
        if len(candidates) < 2:
            raise ValueError(f"{record.place} has no candidate besides the seed")
        # The best is the positive, and the others are negatives
        order = rank_candidates(lists, candidates.index(seed))
        texts = [candidates[i] for i in order]
        negatives = texts[-1:] if negative == "lowest" else texts[1:]
        examples.append(Example(query, (texts[0],), tuple(negatives)))
    return LoadedExamples(examples, 1)


def rank_candidates(lists: Sequence[Sequence[float]], seed: int) -> list[int]:
    """Candidates by the sum of their reciprocal ranks, from the best to the worst.

    Equal scores have equal ranks. Of candidates with equal sums the seed is the first,
    and the others follow in their order.

    Args:
        lists: Scores of the candidates, of several kinds.
        seed: Index of the seed.
    """
    scores = np.asarray(lists, np.float64)  # [kinds, N]
    # A rank is 1 and the number of candidates with a higher score
    ranks = 1 + (scores[:, None, :] > scores[:, :, None]).sum(-1)
    sums = (1 / ranks).sum(0)
    return sorted(range(len(sums)), key=lambda i: (-sums[i], i != seed, i))


def _read_scores(record: Record, name: str, count: int) -> list[float]:
    """The scores of so many candidates in a column."""
    scores = list(record.read_numbers(name))
    if len(scores) != count:
        raise ValueError(
            f"{record.place}: {name} has {len(scores)} scores for {count} candidates"
        )
    return scores


# Columns of the scores of the two prompts.
SCORES = ("query_likelihood", "relevance")
