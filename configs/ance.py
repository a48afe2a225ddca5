"""ANCE: hard negatives, mined anew every n steps; or mined once, random, none.

Source: Xiong et al. 2020, arXiv:2007.00808: negatives from the documents nearest to the
    query, by the checkpoint of every 5,000 to 10,000 steps (from memory, not checked;
    here 100); and the ways that it is compared with: no hard negatives, random ones,
    and those that the initial model mines once, without and with NV-Retriever's
    threshold (Moreira et al. 2024).
Command: python -m launch.train --config=configs/ance.py --workdir=runs/ance
Variants: tiny, model=NAME, depth=L (of the model's first layers; 0 for all),
    data=DIR (with squad_retrieval/), train=FILE (of pairs in place of SQuAD; a tenth of
    its queries is held out and scored), steps=N, batch=N, rate=X (learning rate),
    negatives=N (per query), margin=X (part of the positive's score; 0 for no margin),
    every=N (steps), kind=refreshed, mined (once), random, none (in-batch negatives
    alone) or gist (in-batch negatives without those that guide=NAME takes for
    positives).
Cost: that of embedding all questions and passages for every time of mining.
Expected: the rows of its kinds in notebooks/README.md#kinds-of-hard-negatives, 28
    November 2026.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    public_source,
    teach,
)
from research.config_sections import check_option, section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.mining import MINING
from research.losses.registry import LOSSES

KINDS = ("refreshed", "mined", "random", "none", "gist")


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "depth": 0, "data": DATA, "train": ""}
    options |= {"steps": 300, "batch": 64, "negatives": 2, "margin": 0.0, "every": 100}
    options |= {"rate": 2e-5, "kind": "refreshed", "guide": MINILM}
    arg = parse_arg(arg, **options)
    check_option("kind", arg.kind, KINDS)
    config = fine_tuning(arg, **{"depth": arg.depth} if arg.depth else {})
    config.loss.temperature = 0.05
    config.optimizer.learning_rate = arg.rate
    # Deep enough for what is below the positives of a model that ranks them low
    rules = {"negatives": arg.negatives, "range_max": 100}
    rules["relative_margin"] = arg.margin or None
    every = 2 if arg.tiny else arg.every
    if arg.kind == "mined":
        every = config.steps  # at step 0 alone
    if arg.kind == "gist":
        # As in the other kinds, queries are contrasted with documents alone
        config.loss = section(LOSSES, "gist", temperature=0.05, same_side=False)
        teach(config, arg.guide)
    elif arg.kind == "random":
        counts = {"every": config.steps, "negatives": arg.negatives}
        config.mining = section(MINING, "random", **counts)
    elif arg.kind != "none":
        config.mining = section(MINING, "refresh", every=every, **rules)
    if arg.tiny:
        return config
    config.batch_size = arg.batch
    config.max_length = 256
    if arg.train:
        pairs = section(SOURCES, "files", path=arg.train, part="train")
        config.data = {"pairs": pairs}
        held_out = section(EVALS, "examples", data=arg.train, part="held_out")
        config.evals = {"held_out": held_out}
        return config
    # Questions and passages of SQuAD; the test questions are of other articles.
    config.data = {"squad": public_source(arg.data, "squad", split="train")}
    folder = f"{arg.data}/squad_retrieval"
    config.evals = {"squad_dev": section(EVALS, "retrieval", data=folder, split="dev")}
    return config
