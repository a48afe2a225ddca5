"""Self-Positioning: a model for each task; launch.merge weighs them on a probe set.

Source: arXiv:2410.15035: every task is trained alone from the same base; the weights of
    the task vectors, merged by SLERP, and their scale are found by gradient descent on
    32,000 probe pairs. Batches of 32, a rate of 5e-3 and a penalty of the scale of 0.05
    are the settings of others. Here the tasks are NLI and SQuAD, and the probe pairs
    those of NLI alone, on which one member has trained: a file of both would favor
    neither.
Command: for t in nli squad; do python -m launch.train \
    --config=configs/self_positioning.py:task=$t --workdir=runs/$t; done
    python -m launch.merge --models=runs/nli,runs/squad --output=merged \
    --method="self_positioning(base='sentence-transformers/all-MiniLM-L6-v2',
    data='../shared/data/nli/triplets.jsonl.gz', steps=200)"
Variants: tiny, task=nli|squad|stsb|banking77|trec, model=NAME, data=DIR (with the
    task's folder and stsb/), steps=N.
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    PUBLIC_SETS,
    fine_tuning,
    parse_arg,
    public_source,
)
from research.config_sections import check_option


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=300, task="nli")
    check_option("variant task", arg.task, PUBLIC_SETS)
    config = fine_tuning(arg)
    # The model stays near the base, as task vectors need it.
    config.optimizer.learning_rate = 2e-5
    if not arg.tiny:
        # Texts of a class are alike, and graded pairs have no negatives
        losses = {"stsb": "cosent()"}
        losses |= dict.fromkeys(("banking77", "trec"), "infonce(negatives='hard')")
        loss = losses.get(arg.task, "")
        config.data = {arg.task: public_source(arg.data, arg.task, loss=loss)}
    return config
