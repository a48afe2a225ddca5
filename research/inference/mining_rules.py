"""Rules of hard-negative mining: thresholds, the window of ranks, and sampling.

Thresholds leave out passages that may answer a query after all (NV-Retriever, Moreira
et al. 2024). The rules are those of `mine_hard_negatives` of sentence-transformers 6.2.
"""

import random
from dataclasses import dataclass

import numpy as np

from research.config_sections import check_option


@dataclass(frozen=True)
class MiningRules:
    """Which of the passages near a query are its negatives.

    Attributes:
        negatives: Number of negatives of a query.
        range_min: Number of best candidates that are skipped. Candidates are passages
            that are not known to belong to the query and pass all thresholds.
        range_max: Number of best candidates that are looked at, those skipped included;
            None for the skipped ones, ten times the negatives (once, if there is no
            threshold) and the largest number of positives of a query.
        absolute_margin: A negative scores at least this much less than each positive.
        relative_margin: The same as a fraction of the positive's score: 0.05 is
            NV-Retriever's "95 % of the positive". None, as for all thresholds, for no
            such rule.
        max_score, min_score: Largest and smallest score of a negative.
        sampling: "top" takes the best candidates, "random" draws from all of them.
        fill: Whether a query with too few candidates gets random passages, too.

    Raises:
        ValueError: A number is out of its range, or the window is too small.
    """

    negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    sampling: str = "top"
    fill: bool = False

    def __post_init__(self):
        check_option("sampling", self.sampling, ("top", "random"))
        if self.negatives < 1:
            raise ValueError(f"negatives is {self.negatives}; it should be at least 1")
        if self.range_min < 0:
            raise ValueError(f"range_min is {self.range_min}; it should be at least 0")
        margin = self.relative_margin
        if margin is not None and not 0 <= margin < 1:
            raise ValueError(
                f"relative_margin is {margin}; it should be at least 0 and below 1: "
                "0.05 keeps negatives below 95 % of the positive's score"
            )
        scores = self.min_score, self.max_score
        if None not in scores and scores[0] > scores[1]:
            raise ValueError(f"min_score {scores[0]} is above max_score {scores[1]}")
        if self.range_max is not None:
            window = self.range_max - self.range_min
            if window < self.negatives:
                raise ValueError(
                    f"range_min={self.range_min} and range_max={self.range_max} leave "
                    f"{max(window, 0)} candidates for {self.negatives} negatives"
                )

    @property
    def thresholds(self) -> dict[str, float]:
        """{name: value} of the thresholds that are set."""
        names = ("absolute_margin", "relative_margin", "max_score", "min_score")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def choose_range_max(self, most_positives: int, *, rescored: bool = False) -> int:
        """The number of best candidates that are looked at.

        Args:
            most_positives: Largest number of positives of a query.
            rescored: Whether candidates get the scores of another model.
        """
        if self.range_max is not None:
            return self.range_max
        # Few candidates are below a minimum of the scores that they were found by.
        names = self.thresholds if rescored else self.thresholds.keys() - {"min_score"}
        factor = 10 if names else 1
        return self.range_min + factor * self.negatives + most_positives


def drop_candidates(
    scores: np.ndarray, positive_scores: np.ndarray, rules: MiningRules
) -> tuple[np.ndarray, dict[str, int]]:
    """Leaves out the candidates that do not pass the thresholds.

    Args:
        scores: [Q, C] float32 scores of candidates; -inf for none.
        positive_scores: [Q] float32 score of the worst positive of each query.
        rules: The thresholds.

    Returns:
        The scores [Q, C], with -inf for what is left out, and the number of candidates
        that each threshold left out, in the order in which they are applied.
    """
    positive = positive_scores[:, None]  # [Q, 1]
    dropped = {}
    for name, value in rules.thresholds.items():
        if name == "absolute_margin":
            fails = scores + value > positive
        elif name == "relative_margin":
            # The magnitude: a margin lowers a negative score, too
            fails = scores > positive - np.abs(positive) * value
        elif name == "max_score":
            fails = scores > value
        else:
            fails = scores < value
        fails &= np.isfinite(scores)
        dropped[name] = int(fails.sum())
        scores = np.where(fails, np.float32(-np.inf), scores)
    return scores, dropped


def select_negatives(
    scores: np.ndarray,
    numbers: np.ndarray,
    rules: MiningRules,
    range_max: int,
    seed: int | str = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Selects the negatives among candidates, the best ones or some at random.

    Args:
        scores: [Q, C] float32 scores of candidates; -inf for none.
        numbers: [Q, C] int indices of their passages.
        rules: The window and the sampling.
        range_max: Number of best candidates that are looked at.
        seed: Seed of the sampling "random".

    Returns:
        Passages [Q, N] int64 and scores [Q, N] float32, from the best one; -1 and -inf
        where a query has fewer candidates.
    """
    count = rules.negatives
    order = np.argsort(-scores, axis=1, kind="stable")[:, rules.range_min : range_max]
    # A small corpus has fewer candidates than the window: [Q, at least N]
    missing = ((0, 0), (0, max(0, count - order.shape[1])))
    scores = np.take_along_axis(scores, order, 1)
    scores = np.pad(scores, missing, constant_values=-np.inf)
    numbers = np.pad(np.take_along_axis(numbers, order, 1), missing)
    if rules.sampling == "random":
        generator = random.Random(seed)
        # [Q] numbers of candidates; with fewer than N, all of them are drawn
        options = np.maximum(np.isfinite(scores).sum(1), count).tolist()
        picks = [sorted(generator.sample(range(n), count)) for n in options]
        scores, numbers = (
            np.take_along_axis(x, np.array(picks), 1) for x in (scores, numbers)
        )
    scores, numbers = scores[:, :count], numbers[:, :count]
    return np.where(np.isfinite(scores), numbers, -1).astype(np.int64), scores


def fill_negatives(
    negatives: np.ndarray, excluded: np.ndarray, count: int, seed: int | str = 0
) -> np.ndarray:
    """Fills up the negatives of queries that have too few with random passages.

    Args:
        negatives: [Q, N] int64 indices of passages; -1 where one is missing.
        excluded: [E, 2] int pairs of a query and a passage that is no negative of it.
        count: Number of passages.
        seed: Seed of the random passages.

    Returns:
        [Q, N] int64 indices of passages, different ones in every row.

    Raises:
        ValueError: A query has fewer than N passages that are not excluded.
    """
    excluded = np.unique(excluded, axis=0)
    allowed = count - count_most(excluded)
    if allowed < negatives.shape[1]:
        raise ValueError(
            f"{count} passages, of which {count - allowed} belong to one query, are "
            f"too few for {negatives.shape[1]} negatives"
        )
    generator = random.Random(seed)
    rows = np.flatnonzero((negatives < 0).any(axis=1))  # [R] queries that lack some
    part = negatives[rows]  # [R, N]
    open_places = part < 0
    earlier = np.tri(part.shape[1], k=-1, dtype=bool)  # [N, N] of two places
    while open_places.any():
        size = int(open_places.sum())
        part[open_places] = [generator.randrange(count) for _ in range(size)]
        # Draw again what is excluded, or in its row already
        pairs = np.stack(np.broadcast_arrays(rows[:, None], part), axis=-1)
        same = part[:, :, None] == part[:, None, :]  # [R, N, N]
        repeats = (same & (earlier | ~open_places[:, None, :])).any(axis=-1)
        open_places &= repeats | find_known_pairs(excluded, pairs, count)
    filled = negatives.copy()
    filled[rows] = part
    return filled


def find_known_pairs(known: np.ndarray, pairs: np.ndarray, count: int) -> np.ndarray:
    """Whether pairs [..., 2] of a query and one of `count` passages are in `known`."""
    keys, known = (
        x[..., 0].astype(np.int64) * count + x[..., 1] for x in (pairs, known)
    )
    if not len(known):
        return np.zeros(keys.shape, bool)
    # Unlike `np.isin`, this does not sort the many pairs
    known = np.unique(known)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[places] == keys


def count_most(pairs: np.ndarray) -> int:
    """The largest number of pairs [P, 2] of one query."""
    return int(np.bincount(pairs[:, 0]).max()) if len(pairs) else 0
