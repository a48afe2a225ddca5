"""RetroMAE: reconstructs a heavily masked text from its vector.

Source: Xiao et al. 2022, arXiv:2205.12035, and its released code; they train 8
    epochs of Wikipedia and BookCorpus, 256 x 512 tokens per step at 1e-4.
Command: python -m launch.train --config=configs/retromae.py --workdir=runs/retromae
Variants: tiny, model=NAME, data=DIR (with rawtext/ and stsb/), steps=N, depth=N,
    width=N, vocab_size=N, length=N (tokens per row).
Cost: not measured here.
Expected: STS-B and SQuAD after fine-tuning at six sizes, the row retromae of
    notebooks/README.md#pre-training-for-small-sizes, 21 November 2026.
"""

from configs.common import pre_training
from research.config_sections import section
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    config = pre_training(arg)
    config.objective = section(OBJECTIVES, "retromae")
    return config
