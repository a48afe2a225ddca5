"""DeCLUTR: contrastive learning of nearby spans of a document, together with MLM.

Source: Giorgi et al. 2021, arXiv:2006.03659, and its released code; they train
    one epoch of 497,868 documents of OpenWebText at 5e-5, on spans of 32 to 512 tokens.
Command: python -m launch.train --config=configs/declutr.py --workdir=runs/declutr
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
    config = pre_training(arg, pool="mean", name="spans", kind="declutr")
    config.objective = section(OBJECTIVES, "declutr")
    # A multiple of 6 rows per group (2 anchors, 2 positives each) and of 8 devices.
    config.batch_size = 24 if config.max_length < 128 else 48
    return config
