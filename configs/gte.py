"""GTE: one softmax over pairs of all directions, on a mixture of data sets.

Source: Li et al. 2023, arXiv:2308.03281: temperature 0.01, mean pooling, no prompts;
    the share of a data set grows with a power of its size (0.5, from memory, not
    checked); batches of 16,384 pairs, each from one data set. Here the batch is 64.
Command: python -m launch.train --config=configs/gte.py --workdir=runs/gte
Variants: tiny, model=NAME, data=DIR (with pairs/, squad_retrieval/ and stsb/), steps=N,
    exponent=X (of the sizes; 0 for equal shares).
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
    supplementary_pairs,
)
from research.config_sections import section
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, exponent=0.5)
    config = fine_tuning(arg)
    config.loss = section(LOSSES, "gte", temperature=0.01)
    config.data_exponent = arg.exponent  # of the sizes of the sets
    if arg.tiny:
        config.data = make_tiny_mixture(code="", docs="")
        return config
    # Every set with its size as its weight.
    pairs = supplementary_pairs(arg.data)
    for source in pairs.values():
        source.weight = 1.0
    config.data = {**pairs, "squad": public_source(arg.data, "squad")}
    return config
