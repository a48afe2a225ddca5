"""Stratified samples of texts with several labels each, as mteb draws them."""

import itertools
from collections.abc import Sequence

import numpy as np


def sample_stratified(
    labels: Sequence[Sequence[int | str]], count: int, seed: int
) -> list[int]:
    """Draws rows in which labels, and pairs of labels, have their share.

    Sechidis et al. 2011, "On the Stratification of Multi-Label Data", with pairs
    (Szymanski and Kajdanowicz 2017): the rows are those of scikit-multilearn and mteb.

    Args:
        labels: N lists of labels.
        count: Approximate number of rows to draw, less than N.
        seed: Seed of the choices between equals.

    Returns:
        The indices of the rows, ascending.
    """
    rng = np.random.RandomState(seed)
    shares = np.array([count / len(labels), 1 - count / len(labels)])
    wanted = shares * len(labels)  # numbers of rows that are drawn, and that are not
    # The pairs of labels of each row; a label is a pair with itself.
    columns = {name: i for i, name in enumerate(sorted(set().union(*labels)))}
    pairs_of = [
        list(
            itertools.combinations_with_replacement(sorted(columns[n] for n in row), 2)
        )
        for row in map(set, labels)
    ]
    rows_of: dict[tuple[int, int], list[int]] = {}
    for row, pairs in enumerate(pairs_of):
        for pair in pairs:
            rows_of.setdefault(pair, []).append(row)
    wanted_of = {pair: shares * len(rows) for pair, rows in rows_of.items()}
    sides: dict[int, int] = {}  # {row: 0 if it is drawn}

    def put(row: int, side: int) -> None:
        sides[row] = side
        wanted[side] -= 1
        for pair in pairs_of[row]:
            wanted_of[pair][side] -= 1
            rows_of[pair].remove(row)

    # All rows of a pair, then those of the next one.
    while (pair := _choose_pair(rows_of)) is not None:
        while rows_of[pair]:
            most = np.flatnonzero(wanted_of[pair] == wanted_of[pair].max())
            put(rows_of[pair][-1], most[0] if len(most) == 1 else rng.choice(most))
    # Rows without labels
    for row in reversed(range(len(labels))):
        if row not in sides:
            put(row, rng.choice(np.flatnonzero(wanted > 0)))
    return sorted(row for row, side in sides.items() if side == 0)


def _choose_pair(rows_of: dict[tuple[int, int], list[int]]) -> tuple[int, int] | None:
    """The next pair with rows: the first, or one of two labels that has fewer rows."""
    best = None
    for pair, rows in rows_of.items():
        if rows and (
            best is None
            or len(set(pair)) > len(set(best))
            and len(rows) < len(rows_of[best])
        ):
            best = pair
    return best
