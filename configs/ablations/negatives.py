"""In-batch, random, mined and refreshed hard negatives, and those a guide leaves.

Source: Xiong et al. 2020, arXiv:2007.00808 (ANCE), Moreira et al. 2024,
    arXiv:2407.15831 (NV-Retriever) and Solatorio 2024, arXiv:2402.16829 (GISTEmbed),
    compared at a small scale.
Command: python -m launch.ablate --config=configs/ablations/negatives.py \
    --workdir=runs/negatives
Variants: tiny, model=NAME, depth=L, data=DIR (with pairs/ and stsb/), steps=N,
    every=N (steps between two times of mining in the row "refreshed"), seeds=(0,1).
Rows: start is the model's first three layers before training; the others are kinds of
    configs/ance.py, trained on terms of textbooks and their definitions, with one hard
    negative for each.
Columns: nDCG@10 of held-out terms among their definitions; Spearman x 100 on STS-B's
    test pairs, which tells what the training costs elsewhere.
Cost: 51 minutes of one CPU core for a seed, beside other programs.
Expected: the table of notebooks/README.md#kinds-of-hard-negatives, 28 November 2026.
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
    options = {"tiny": False, "model": MINILM, "depth": 3, "data": DATA}
    arg = parse_arg(arg, **options, steps=90, every=30, seeds=(0, 1))
    pairs = f"{arg.data}/pairs/openstax_glossary.jsonl.gz"
    # Terms are short, and so are their definitions: a run takes minutes on a CPU
    variant = f"model={arg.model},depth={arg.depth},train={pairs},steps={arg.steps}"
    variant += f",every={arg.every},negatives=1,rate=1e-4"
    evals = {
        "terms": section(EVALS, "examples", data=pairs, part="held_out"),
        "STS-B": section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz"),
    }
    if arg.tiny:
        variant = "tiny"
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    rows = {name: f"configs/ance.py:{kind},{variant}" for name, kind in ROWS.items()}
    return ml_collections.ConfigDict(
        {
            "title": "Terms and definitions, by kind of hard negatives",
            "rows": (("start", f"model={arg.model}"), *rows.items()),
            "columns": tuple(
                (name, {"eval": name, "depth": arg.depth}) for name in evals
            ),
            "seeds": arg.seeds,
            "evals": evals,
            "reference": "in-batch",
        }
    )
