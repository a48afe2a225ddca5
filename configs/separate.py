"""The baseline of one model per depth: a model cut to its first blocks, then trained.

Source: Zhuang et al. 2024, arXiv:2410.13230, row "Separate": the loss is of the full
    width, which is truncated only for evaluation.
Command: python -m launch.train --config=configs/separate.py:depth=3 --workdir=runs/d3
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, depth=L.
Cost: 4 minutes on 2 CPU cores for 96 steps of 64 triplets; less for a smaller depth.
Expected: STS-B test at the six sizes, the row separate of
    notebooks/README.md#six-sizes-from-one-model, 21 November 2026.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=128, depth=6)
    config = fine_tuning(arg, depth=arg.depth)
    return config
