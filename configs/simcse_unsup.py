"""Unsupervised SimCSE: a sentence is its own positive, with another dropout mask.

Source: Gao et al. 2021, arXiv:2104.08821, section 3: batch 64, 32 tokens, 3e-5, one
    epoch of 10^6 sentences; the first token's state goes through a dense layer with
    tanh, which is dropped after training.
Command: python -m launch.train --config=configs/simcse_unsup.py --workdir=runs/unsup
Variants: tiny, model=NAME, data=DIR (with rawtext/ and stsb/), steps=N.
Cost: not measured here.
Expected: not measured here; the paper's STS-B is 76.85 from bert-base-uncased.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg
from research.config_sections import section
from research.data.sources import SOURCES
from research.models.pooling.registry import BASIC_POOLINGS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=128)
    config = fine_tuning(arg)
    # The paper's settings where they differ from `fine_tuning`.
    config.max_length = 32
    config.pool = section(BASIC_POOLINGS, "cls")
    config.objective.head = "tanh"
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup = 0.0
    # Every sentence is its own positive.
    if not arg.tiny:
        path = f"{arg.data}/rawtext/openstax.txt.gz"
        config.data = {"sentences": section(SOURCES, "texts", path=path)}
    return config
