"""2D Matryoshka sentence embeddings: a random layer and random widths in each step.

Source: Li et al. 2024, arXiv:2402.14776. variant=st5_adaptive is "2DMSE" in the
    Starbucks paper (sentence-transformers' Matryoshka2dLoss up to 5.2), st6_adaptive
    that of 6.2; mse2d_v1 and mse2d_later are the first and later code of the authors.
Command: python -m launch.train --config=configs/mse2d.py --workdir=runs/mse2d
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N,
    variant=st5_adaptive|st6_adaptive|mse2d_v1|mse2d_later.
Cost: 4 minutes on 2 CPU cores for 96 steps of 64 triplets.
Expected: STS-B test at the six sizes, the row mse2d of
    notebooks/README.md#six-sizes-from-one-model, 21 November 2026.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, starbucks_dims
from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg, tiny=False, model=MINILM, data=DATA, steps=128, variant="st5_adaptive"
    )
    config = fine_tuning(arg)
    # The widths of Starbucks' six sizes.
    dims = starbucks_dims(config)
    config.size_loss = section(SIZE_LOSSES, arg.variant, dims=dims)
    return config
