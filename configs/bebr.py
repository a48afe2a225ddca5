"""BEBR: recurrent binary codes of a frozen model's vectors.

Source: Gan et al. 2023, arXiv:2302.08714, and their code: planes of signs, each of what
    the planes before leave of the vector, trained by a contrastive loss at temperature
    0.05 of pairs of vectors in both directions. They take SGD at 0.08, batch 128, 10
    epochs, layers with a batch norm and 2,048 hidden units, and the 5 hardest negatives
    of a batch. Here AdamW at 1e-3, linear layers, and all negatives of a batch. With
    old=NAME, a model of the same codes, also the backward-compatible loss, by which new
    queries search its codes; its weight in the paper is not known to us.
Command: python -m launch.train --config=configs/bebr.py --workdir=runs/bebr
    python -m launch.evaluate --model=runs/bebr --task=retrieval --data=BEIR \\
        --transform="int2(limit=2.0)"
    The codes of one round take 2 bits per value; queries=FILE and documents=FILE are
    vectors that launch.embed wrote, as in configs/csr.py.
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/), steps=N, dim=N (of a
    code), rounds=N, rate=X (learning rate), queries=FILE and documents=FILE, old=NAME.
Cost: with vectors, 2,000 steps of 128 pairs take minutes on a CPU core.
Expected: not measured here.
"""

from configs import csr
from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    teach,
)
from research.config_sections import section
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": MINILM, "data": DATA, "steps": 400, "rate": 1e-3},
        **{"dim": 384, "rounds": 1, "queries": "", "documents": "", "old": ""},
    )
    if arg.old and (arg.queries or arg.documents):
        raise ValueError("old=NAME embeds within the step: give no files of vectors")
    config = fine_tuning(arg)
    # A head over vectors that stay as they are; its codes are stored as they are
    config.pool = section(POOLINGS, "bebr", dim=arg.dim, rounds=arg.rounds)
    config.objective = section(OBJECTIVES, "vector_head")
    config.loss = section(LOSSES, "infonce", temperature=0.05, symmetric=True)
    if arg.old:
        terms = "infonce(temperature=0.05, symmetric=True) | backward_compatible()"
        config.loss = section(LOSSES, "weighted_sum", terms=terms)
        teach(config, arg.old)
    csr.train_head(config, arg)
    return config
