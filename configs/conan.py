"""Conan-embedding: hard negatives, replaced when easy, and graded pairs, in turns.

Source: Li et al. 2024, arXiv:2408.15710: InfoNCE with the hard negatives of all
    devices, and 0.8 times CoSENT of graded pairs (there in one step on different
    devices, here in steps that take turns); Matryoshka; 1e-5, warm-up 5 %, weight decay
    0.001. Every 100 steps, hard negatives whose score has fallen give way to the next
    ones of a list that the initial model mines; here for all examples at once, there
    for those of a step.
Command: python -m launch.train --config=configs/conan.py --workdir=runs/conan
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, mined=FILE (query,
    positive and negatives, whose documents are mined; NLI triplets without it),
    negatives=N (per query in a step).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    make_tiny_mixture,
    parse_arg,
    public_source,
    starbucks_dims,
)
from research.config_sections import section
from research.data.sources import SOURCES
from research.experiment.mining import MINING
from research.losses.matryoshka import SIZE_LOSSES

# Call text of the loss of graded pairs
GRADED = "weighted_sum(terms='cosent()', weights=(0.8,))"


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"mined": "", "negatives": 2}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, **options)
    config = fine_tuning(arg)
    config.loss.temperature = 0.05
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup = 0.05
    config.optimizer.weight_decay = 0.001
    # Half, a quarter and less of the width.
    dims = starbucks_dims(config)
    config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=dims)
    rule = {"every": 2, "replacements": 2} if arg.tiny else {"negatives": arg.negatives}
    config.mining = section(MINING, "dynamic", sources=("retrieval",), **rule)
    if arg.tiny:  # no scores without files
        config.data = make_tiny_mixture(retrieval="", graded="infonce(temperature=0.1)")
        return config
    # Queries with hard negatives, and graded pairs.
    retrieval = public_source(arg.data, "nli")
    if arg.mined:
        retrieval = section(SOURCES, "files", path=arg.mined)
    config.data = {
        "retrieval": retrieval,
        "stsb": public_source(arg.data, "stsb", loss=GRADED),
    }
    return config
