"""DupMAE (RetroMAE v2): reconstructs a text and its bag of words from its vector.

Source: Xiao et al. 2023, arXiv:2211.08769, and its released code (where the bag of
    words has the weight 0.1, in the paper 1); data and steps are those of RetroMAE.
Command: python -m launch.train --config=configs/dupmae.py --workdir=runs/dupmae
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
    config = pre_training(arg)
    config.objective = section(OBJECTIVES, "dupmae")
    return config
