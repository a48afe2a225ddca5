"""SMAE, Starbucks' masked autoencoding: a bottleneck at each of six encoder sizes.

Source: Zhuang et al. 2024, arXiv:2410.13230 (SMAE), and its released code; they train
    one pass over FineWeb 100BT, 512 x 512 tokens per step at 1e-4, from
    bert-base-uncased.
Command: python -m launch.train --config=configs/smae.py --workdir=runs/smae
Variants: tiny, model=NAME, data=DIR (with rawtext/ and stsb/), steps=N, depth=N,
    width=N, vocab_size=N, length=N (tokens per row).
Cost: not measured here.
Expected: STS-B and SQuAD after fine-tuning at six sizes, the row smae of
    notebooks/README.md#pre-training-for-small-sizes, 21 November 2026.
"""

from configs.common import pre_training, starbucks_pairs
from research.config_sections import section
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    config = pre_training(arg)
    # Six (depth, width) pairs.
    pairs = starbucks_pairs(config)
    config.objective = section(OBJECTIVES, "smae", pairs=pairs)
    return config
