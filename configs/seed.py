"""SEED-Encoder: a weak decoder sees the text's vector and the last few tokens.

Source: Lu et al. 2021, arXiv:2102.09206, and its released model; theirs is 12 x 768
    with a decoder of 3 blocks that attends to 2 tokens, trained on Wikipedia.
Command: python -m launch.train --config=configs/seed.py --workdir=runs/seed
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
    config.objective = section(OBJECTIVES, "seed")
    return config
