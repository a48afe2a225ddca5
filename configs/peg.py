"""PEG: weights that turn to hard examples during the run (not the paper's formula).

Source: Wu et al. 2023, arXiv:2311.11691: five hard negatives per query, very large
    batches, and weights that turn to difficult examples in the course of the training.
    Their formula was not at hand: here the weight is (1 - p)^e with the probability p
    of the positive, and e grows from 0 to `focal`.
Command: python -m launch.train --config=configs/peg.py --workdir=runs/peg
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, focal=X, mined=FILE
    (query, positive and negatives, as launch.mine writes them; else NLI triplets).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg
from research.config_sections import section
from research.data.sources import SOURCES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"focal": 1.0, "mined": ""}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, **options)
    config = fine_tuning(arg)
    # Hard examples count more and more.
    config.loss.focal, config.loss.progressive = arg.focal, True
    if arg.mined and not arg.tiny:
        config.data = {"mined": section(SOURCES, "files", path=arg.mined)}
    return config
