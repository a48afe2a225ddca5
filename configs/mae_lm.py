"""MAE-LM: masked language modeling in which the encoder never sees [MASK].

Source: Meng et al. 2024, arXiv:2302.02060, and its released code; they train
    2M steps of rows of 512 tokens at 2e-4, with a decoder of 4 blocks.
Command: python -m launch.train --config=configs/mae_lm.py --workdir=runs/mae_lm
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
    config.objective = section(OBJECTIVES, "mae_lm")
    return config
