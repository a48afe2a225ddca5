"""ELECTRA: detects the tokens that a small generator has replaced.

Source: Clark et al. 2020, arXiv:2003.10555; for the small size, they train 1M steps of
    128 x 128 tokens at 5e-4.
Command: python -m launch.train --config=configs/electra.py --workdir=runs/electra
Variants: tiny, model=NAME, data=DIR (with rawtext/ and stsb/), steps=N, depth=N,
    width=N, vocab_size=N, length=N (tokens per row).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import pre_training
from research.config_sections import section
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    config = pre_training(arg, pool="mean")
    config.objective = section(OBJECTIVES, "electra")
    return config
