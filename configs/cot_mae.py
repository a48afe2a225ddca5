"""CoT-MAE: reconstructs a span of a text from the vector of a neighboring span.

Source: Wu et al. 2023, arXiv:2208.07670, and its released code; they train
    800k steps of 1,024 spans of MS MARCO at 1e-4.
Command: python -m launch.train --config=configs/cot_mae.py --workdir=runs/cot_mae
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
    config = pre_training(arg, name="spans", kind="cot")
    config.objective = section(OBJECTIVES, "cot_mae")
    return config
