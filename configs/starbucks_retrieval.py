"""Starbucks for retrieval: six fixed sizes, with KL from the full size's scores.

Source: Zhuang et al. 2024, arXiv:2410.13230, and the retrieval loss that its authors
    released: dot products of the first token's states at temperature 1, and for every
    size the divergence of its scores from those of the full size. They train on MS
    MARCO with 7 hard negatives at batch 128, 1e-4, 3 epochs.
Command: python -m launch.train --config=configs/starbucks_retrieval.py --workdir=runs/r
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/), steps=N.
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    starbucks_pairs,
    train_on_squad,
)
from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.models.pooling.registry import BASIC_POOLINGS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=128)
    config = fine_tuning(arg)
    # Dot products of the first token's states.
    config.pool = section(BASIC_POOLINGS, "cls")
    config.similarity = "dot"
    config.loss = section(LOSSES, "infonce", temperature=1.0)
    config.normalize = False
    pairs = starbucks_pairs(config)
    config.size_loss = section(SIZE_LOSSES, "starbucks_retrieval", pairs=pairs)
    config.optimizer.learning_rate = 1e-4
    if not arg.tiny:
        config.batch_size, config.max_length = 32, 196
        train_on_squad(config, arg.data, "dot")
    return config
