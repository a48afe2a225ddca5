"""Mask-later: masked tokens skip the encoder; a small decoder predicts them.

Source: Liao et al. 2022, arXiv:2211.04898 (3ML, with self-attention only); half of the
    tokens are masked and predicted.
Command: python -m launch.train --config=configs/mask_later.py --workdir=runs/mask_later
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
    config.objective = section(OBJECTIVES, "mask_later")
    return config
