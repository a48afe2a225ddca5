"""Supervised contrastive learning: all texts of a class are each other's positives.

Source: Khosla et al. 2020, arXiv:2004.11362, equation 2, at temperature 0.1, for texts
    with labels: here the intents of Banking77, each query with one drawn positive,
    whose batch has further ones.
Command: python -m launch.train --config=configs/supcon.py --workdir=runs/supcon
Variants: tiny, model=NAME, data=DIR (with banking77/), steps=N, batch=N, dataset=NAME
    (the folder of another set of texts with labels).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"batch": 256, "dataset": "banking77"}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=200, **options)
    config = fine_tuning(arg)
    config.loss = section(LOSSES, "supcon", temperature=0.1)
    if arg.tiny:
        return config
    config.batch_size = arg.batch  # several texts of a class
    # No hard negatives: all other classes of the batch are negatives.
    folder = f"{arg.data}/{arg.dataset}"
    config.data = {
        arg.dataset: section(
            SOURCES, "labeled_texts", path=f"{folder}/train.jsonl.gz", negatives=0
        )
    }
    config.evals = {arg.dataset: section(EVALS, "classification", data=folder)}
    return config
