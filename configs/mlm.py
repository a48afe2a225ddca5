"""Masked language modeling of whole words on raw text (BERT).

Source: Devlin et al. 2019, arXiv:1810.04805, with masks of whole words; they train 1M
    steps of 256 x 512 tokens of books and Wikipedia at 12 x 768.
Command: python -m launch.train --config=configs/mlm.py --workdir=runs/mlm
Variants: tiny, model=NAME, data=DIR (with rawtext/ and stsb/), steps=N, depth=N,
    width=N, vocab_size=N, length=N (tokens per row). To mask rare or difficult words
    more often: --config.objective.weighting=frequency or loss.
Cost: not measured here.
Expected: STS-B and SQuAD after fine-tuning at six sizes, the row mlm of
    notebooks/README.md#pre-training-for-small-sizes, 21 November 2026.
"""

from configs.common import pre_training
from research.config_sections import section
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    config = pre_training(arg, pool="mean")
    config.objective = section(OBJECTIVES, "mlm")
    return config
