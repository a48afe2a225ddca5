"""Error rates of `significance`: false positives, and power for a known difference."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import scipy

from launch import main as cli
from research.eval.comparison.significance import LEVEL, compare_items
from research.eval.evaluators import EVALS
from research.eval.suites.tasks import cache_vectors, depends_on_role
from research.inference.embedder import Embedder
from research.interop import load
from research.types import ItemValues

# Number of values of the truncated model, by task, for a gap of a few points.
DIMS = {"retrieval": 256, "sts": 64}
COUNTS = (50, 200)  # of resampled items
TRIALS = 400
RESAMPLES = 499


def measure_error_rates(model_name: str, data: str) -> dict:
    """Rates at which a model and its truncation are called different, on real tasks.

    Items are drawn with replacement from those of a task. Without a difference: for
    each item, chance decides which of the two scores belongs to which side, so that
    both sides are copies of one system. With a difference: the model against its
    first values.

    Args:
        model_name: Name of the model.
        data: Folder with squad_retrieval/ and stsb/.

    Returns:
        {task: [{"items", "false_positives", "power"}, ...]}, shares of TRIALS with p
        below LEVEL by test.
    """
    embedder = Embedder(load.load(model_name), allow_empty=True)
    embed = cache_vectors(embedder, by_role=depends_on_role(embedder))

    evaluators = {
        "retrieval": EVALS["retrieval"](data=f"{data}/squad_retrieval"),
        "sts": EVALS["sts"](data=f"{data}/stsb/test.jsonl.gz"),
    }

    def embed_truncated(dim, texts, role):
        return embed(texts, role)[:, :dim]  # cosines do not depend on the norm

    # Both models are embedded once; the trials resample their items.
    rates, gaps = {}, {}
    for task, evaluate in evaluators.items():
        sides = embed, partial(embed_truncated, DIMS[task])
        scores = [evaluate(side) for side in sides]
        gaps[task] = scores[0]["main_score"] - scores[1]["main_score"]
        items = [score.item_values for score in scores]
        rates[task] = [_measure_rates(items, count) for count in COUNTS]
        cli.log(f"{task}: a gap of {gaps[task]:.2f}: {rates[task]}")
    return {"trials": TRIALS, "dims": DIMS, "gaps": gaps, "rates": rates}


def _measure_rates(items: Sequence[ItemValues], count: int) -> dict:
    """The rates for a number of items, by test."""
    rng = np.random.default_rng(count)
    sides = [np.asarray(side.values[0], np.float64) for side in items]  # [N] each
    truth = items[0].values[1:]
    if truth:
        # Similarities of two models have other scales; their ranks have the same.
        sides = [scipy.stats.rankdata(values) for values in sides]
    rejected: dict[str, list] = {"false_positives": [], "power": []}
    for _ in range(TRIALS):
        rows = rng.integers(0, len(sides[0]), count)
        a, b = (values[rows] for values in sides)
        # Which side has which score, by chance, for no difference.
        swap = rng.random(count) < 0.5
        for kind, pair in (
            ("false_positives", (np.where(swap, b, a), np.where(swap, a, b))),
            ("power", (a, b)),
        ):
            names = list(map(str, range(count)))
            further = [np.asarray(values)[rows] for values in truth]
            result = compare_items(
                *(ItemValues(names, (x, *further), items[0].statistic) for x in pair),
                resamples=RESAMPLES,
            )
            rejected[kind].append({t: p < LEVEL for t, p in result.p_values.items()})
    return {"items": count} | {
        kind: {test: float(np.mean([r[test] for r in rows])) for test in rows[0]}
        for kind, rows in rejected.items()
    }
