"""InferSent: an encoder trained by a classifier of inference pairs.

Source: Conneau et al. 2017, arXiv:1705.02364: a softmax over entailment, neutral and
    contradiction reads u, v, |u - v| and u * v. Sentence-BERT (arXiv:1908.10084) trains
    a BERT this way, at batch 16 and 2e-5 for one epoch. The classifier, here one linear
    layer, is not exported.
Command: python -m launch.train --config=configs/infersent.py --workdir=runs/infersent
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, rate=X (learning
    rate).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg
from research.config_sections import section
from research.data.sources import SOURCES
from research.objectives.registry import OBJECTIVES

CLASSES = ("entailment", "neutral", "contradiction")


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, rate=2e-5)
    config = fine_tuning(arg)
    config.optimizer.learning_rate = arg.rate
    # Classes come with files: the tiny recipe is contrastive
    if arg.tiny:
        return config
    config.objective = section(OBJECTIVES, "classify_pairs", classes=len(CLASSES))
    config.data = {
        "nli": section(
            SOURCES,
            "labeled_pairs",
            path=f"{arg.data}/nli/labelled_pairs.jsonl.gz",
            classes=CLASSES,
        )
    }
    return config
