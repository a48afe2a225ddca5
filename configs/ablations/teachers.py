"""A three-layer student with and without a teacher, by the signal that it learns from.

Source: Park et al. 2019, arXiv:1904.05068 (relations), and Zhang et al. 2024,
    arXiv:2412.19048 (Stella), compared at a small scale.
Command: python -m launch.ablate --config=configs/ablations/teachers.py \
    --workdir=runs/teachers
Variants: tiny, model=NAME, depth=L, data=DIR (with nli/, squad_retrieval/ and stsb/),
    steps=N, seeds=(0,1).
Rows: teacher is the full model; the others are signals of configs/student.py, each with
    the contrastive loss, on NLI triplets alone.
Columns: Spearman x 100 on STS-B's test pairs, nDCG@10 of SQuAD's test questions, both
    with texts of up to 64 tokens, as in training.
Cost: 20 minutes of one CPU core for a seed.
Expected: the table of notebooks/README.md#a-student-with-and-without-a-teacher, 28
    November 2026.
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

# {row: variant of configs/student.py}
ROWS = {
    "contrastive": "signal=none",
    "kl": "signal=kl",
    "mse": "signal=mse",
    "relational": "signal=relational",
    "stella": "signal=stella",
}
LENGTH = 64  # tokens of a text


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "depth": 3, "data": DATA}
    arg = parse_arg(arg, **options, steps=60, seeds=(0, 1))
    variant = f"model={arg.model},depth={arg.depth},data={arg.data},steps={arg.steps}"
    variant += f",length={LENGTH},sets=('nli',)"
    evals = {
        "STS-B": section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz"),
        "SQuAD": section(EVALS, "retrieval", data=f"{arg.data}/squad_retrieval"),
    }
    if arg.tiny:
        variant = "tiny"
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    rows = {name: f"configs/student.py:{kind},{variant}" for name, kind in ROWS.items()}
    return ml_collections.ConfigDict(
        {
            "title": "A three-layer student, by the signal of its teacher",
            "rows": (("teacher", f"model={arg.model}"), *rows.items()),
            "columns": tuple(
                (name, {"eval": name, "max_length": LENGTH}) for name in evals
            ),
            "seeds": arg.seeds,
            "evals": evals,
            "reference": "contrastive",
        }
    )
