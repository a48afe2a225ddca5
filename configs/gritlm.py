"""GritLM: contrastive learning and causal language modeling with one model.

Source: Muennighoff et al. 2024, arXiv:2402.09906: 1,253 steps of 2,048 pairs and 256
    conversations, temperature 0.02, mean pooling. Here both losses use the same texts.
Command: python -m launch.train --config=configs/gritlm.py:model=runs/decoder \
    --workdir=runs/gritlm
Variants: tiny, model=NAME (any decoder; default runs/decoder), data=DIR (with nli/ and
    stsb/), steps=N. To set the weight of language modeling:
    --config.objective.weight=0.5
Cost: not measured here.
Expected: not measured here.
"""

from configs import learned_poolings
from configs.common import DATA, parse_arg
from research.config_sections import section
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    # The recipe of learned_poolings, with mean pooling and another objective.
    parse_arg(arg, tiny=False, model="", data=DATA, steps=128)
    config = learned_poolings.get_config(arg)
    config.pool = section(POOLINGS, "mean")
    config.objective = section(OBJECTIVES, "gritlm")
    config.loss.temperature = 0.02
    return config
