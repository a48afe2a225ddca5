"""Hard negatives of five kinds, against in-batch negatives alone.

Source: Xiong et al. 2020, arXiv:2007.00808 (ANCE), Moreira et al. 2024,
    arXiv:2407.15831 (NV-Retriever) and Solatorio 2024, arXiv:2402.16829 (GISTEmbed),
    compared at a small scale.
Command: python -m launch.ablate --config=configs/ablations/negatives.py \
    --workdir=runs/negatives
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/ and cosqa/), steps=N,
    seeds=(0,1).
Rows: start is the model before training; the others are kinds of configs/ance.py.
Columns: nDCG@10 of SQuAD's test questions, whose articles are others, and of CoSQA.
Cost: 12 runs.
Expected: not measured here.
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

# {row: variant of configs/ance.py}
ROWS = {
    "in-batch": "kind=none",
    "random": "kind=random",
    "mined": "kind=mined",
    "mined, margin": "kind=mined,margin=0.05",
    "refreshed": "kind=refreshed,margin=0.05",
    "gist": "kind=gist",
}


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=300, seeds=(0, 1))
    variant = f"model={arg.model},data={arg.data},steps={arg.steps}"
    evals = {
        "SQuAD": section(EVALS, "retrieval", data=f"{arg.data}/squad_retrieval"),
        "CoSQA": section(EVALS, "retrieval", data=f"{arg.data}/cosqa"),
    }
    if arg.tiny:
        variant = "tiny"
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    rows = {name: f"configs/ance.py:{kind},{variant}" for name, kind in ROWS.items()}
    return ml_collections.ConfigDict(
        {
            "title": "nDCG@10 after training on SQuAD, by kind of hard negatives",
            "rows": (("start", f"model={arg.model}"), *rows.items()),
            "columns": tuple((name, {"eval": name}) for name in evals),
            "seeds": arg.seeds,
            "evals": evals,
            "reference": "in-batch",
        }
    )
