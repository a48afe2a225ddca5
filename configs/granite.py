"""Granite's distillation: a contrastive loss and the scores of a larger teacher.

Source: Awasthy et al. 2025, arXiv:2502.20204, from memory, not checked: RetroMAE, then
    contrastive fine-tuning with hard negatives by the loss of GTE, then KL to a
    teacher's scores of each query's documents. Here the last two are one stage, and
    the weights and temperatures are ours. NLI triplets.
Command: python -m launch.train --config=configs/granite.py --workdir=runs/granite
Variants: tiny, model=NAME, depth=L (blocks of the student, -1 for all), teacher=NAME
    (it embeds within the step), data=DIR (with nli/ and stsb/), steps=N, weight=X (of
    the distillation), documents=batch (contrastive distillation: scores of all
    documents of the batch) or own. A file with a column of scores needs no teacher:
    --config.teacher="none()"
Cost: a step also embeds the batch by the teacher, forward only.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, teach
from research.config_sections import section
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "depth": 3, "teacher": MINILM}
    options |= {"data": DATA, "steps": 1_000, "weight": 1.0, "documents": "own"}
    arg = parse_arg(arg, **options)
    config = fine_tuning(arg, **({} if arg.tiny else {"depth": arg.depth}))
    # The pairs of the tiny variant have no hard negatives
    documents = "batch" if arg.tiny else arg.documents
    options = f"temperature=0.05, teacher_temperature=0.05, documents={documents!r}"
    config.loss = section(
        LOSSES,
        "weighted_sum",
        terms=f"gte(temperature=0.05) | teacher_kl({options})",
        weights=(1.0, arg.weight),
    )
    teach(config, arg.teacher)
    return config
