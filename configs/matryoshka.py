"""Matryoshka representation learning: one loss for each of several widths.

Source: Kusupati et al. 2022, arXiv:2205.13147, equation 1 with all weights 1.
Command: python -m launch.train --config=configs/matryoshka.py --workdir=runs/mrl
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N.
Cost: 4 minutes on 2 CPU cores for 96 steps of 64 triplets.
Expected: STS-B test at the six sizes, the row matryoshka of
    notebooks/README.md#six-sizes-from-one-model, 21 November 2026.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, starbucks_dims
from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=128)
    config = fine_tuning(arg)
    # The widths of Starbucks' six sizes.
    dims = starbucks_dims(config)
    config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=dims)
    return config
