"""Starbucks for similarity: six fixed sizes, with KL from the last layer's features.

Source: Zhuang et al. 2024, arXiv:2410.13230, and the loss that its authors released;
    they train one pass over 557,850 NLI triplets at batch 128 from bert-base-uncased.
Command: python -m launch.train --config=configs/starbucks_sts.py --workdir=runs/sts
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, rate=X
    (learning rate), pairs (every second step trains on data/pairs), scratch (random
    weights instead of the model's).
Cost: 4 minutes on 2 CPU cores for 96 steps of 64 triplets.
Expected: STS-B test at the six sizes, the row starbucks_sts of
    notebooks/README.md#six-sizes-from-one-model, 21 November 2026.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    starbucks_pairs,
    supplementary_pairs,
)
from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"rate": 5e-5, "pairs": False, "scratch": False}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=128, **options)
    config = fine_tuning(arg)
    config.optimizer.learning_rate = arg.rate
    if arg.pairs and not arg.tiny:
        config.data.update(supplementary_pairs(arg.data))
    if arg.scratch:
        config.init_from = ""
    # Six (depth, width) pairs.
    pairs = starbucks_pairs(config)
    config.size_loss = section(SIZE_LOSSES, "starbucks_sts", pairs=pairs)
    return config
