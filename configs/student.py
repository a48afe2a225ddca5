"""A shallow student of a model, with one of five signals of the teacher, or none.

Source: none; the losses are those of Hinton et al. 2015 (arXiv:1503.02531) on scores,
    of Park et al. 2019 (arXiv:1904.05068) on relations, and of Zhang et al. 2024
    (arXiv:2412.19048). The weights are ours.
Command: python -m launch.train --config=configs/student.py:signal=kl --workdir=runs/kl
Variants: tiny, model=NAME (its first blocks are the student), depth=L, teacher=NAME
    (the same model if it is not given; it embeds within the step), signal=none, kl,
    mse, cosine, relational or stella, alone (without the contrastive loss), data=DIR
    (with nli/, squad_retrieval/ and stsb/), sets=("nli",) (of PUBLIC_SETS in
    configs/common.py), steps=N, batch=N, rate=X, length=N (tokens of a text).
Cost: a step also embeds the batch by the teacher, forward only.
Expected: the rows of its signals in
    notebooks/README.md#a-student-with-and-without-a-teacher, 28 November 2026.
"""

from configs.common import (
    DATA,
    MINILM,
    make_base,
    parse_arg,
    public_source,
    start_from,
    teach,
    tiny,
)
from research.config_sections import check_option, section
from research.eval.evaluators import EVALS
from research.interop.load import load
from research.losses.registry import LOSSES

# {signal: (loss, weight)}; the squares of 384 small errors have a small mean
SIGNALS = {
    "none": ("", 0.0),
    "kl": (
        "teacher_kl(documents='batch', temperature=0.05, teacher_temperature=0.05)",
        1.0,
    ),
    "mse": ("embedding_mse(normalize=True)", 1000.0),
    "cosine": ("embedding_cosine()", 5.0),
    "relational": ("relational_kd()", 10.0),
    "stella": ("stella()", 0.2),
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "depth": 3, "teacher": "", "data": DATA}
    options |= {"signal": "kl", "alone": False, "steps": 500, "batch": 32, "rate": 2e-4}
    options |= {"length": 128, "sets": ("nli", "squad")}
    arg = parse_arg(arg, **options)
    check_option("signal", arg.signal, SIGNALS)
    config = make_base()
    config.steps, config.batch_size = arg.steps, arg.batch
    config.max_length = arg.length
    config.optimizer.learning_rate, config.optimizer.warmup = arg.rate, 0.1
    # The contrastive loss, the teacher's signal, or both
    signal, weight = SIGNALS[arg.signal]
    terms = [] if arg.alone else [("infonce()", 1.0)]
    if signal:
        terms.append((signal, weight))
    if not terms:
        raise ValueError("signal=none with alone leaves no loss")
    config.loss = section(
        LOSSES,
        "weighted_sum",
        terms=" | ".join(term for term, _ in terms),
        weights=tuple(weight for _, weight in terms),
    )
    teacher = arg.teacher or arg.model
    if arg.tiny:
        tiny(config)
        config.objective.head, config.objective.keep_head = "linear", True
        config.objective.head_width = load(teacher, weights=False).width
    else:
        start_from(config, arg.model, depth=arg.depth)
        config.data = {name: public_source(arg.data, name) for name in arg.sets}
        config.evals = {
            "stsb_dev": section(EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz")
        }
    if signal:
        teach(config, teacher)
    return config
