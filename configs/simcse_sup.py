"""Supervised SimCSE: InfoNCE on NLI triplets, with the first token's state.

Source: Gao et al. 2021, arXiv:2104.08821, section 4 and appendix A: batch 512, 32
    tokens, 3 epochs, 5e-5 for base models, no warm-up. The dense layer with tanh after
    the first token is kept at test time, unlike in the unsupervised recipe; without it:
    --config.objective.keep_head=False.
Command: python -m launch.train --config=configs/simcse_sup.py --workdir=runs/simcse
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N.
Cost: not measured here.
Expected: not measured here; the paper's STS-B is 84.25 from bert-base-uncased.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg
from research.config_sections import section
from research.models.pooling.registry import BASIC_POOLINGS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=96)
    config = fine_tuning(arg)
    # The paper's settings where they differ from `fine_tuning`.
    config.max_length = 32
    config.pool = section(BASIC_POOLINGS, "cls")
    config.objective.head, config.objective.keep_head = "tanh", True
    config.optimizer.warmup = 0.0
    return config
