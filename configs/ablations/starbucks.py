"""Elastic encoders against one model per size: STS-B test at six sizes.

Source: Zhuang et al. 2024, arXiv:2410.13230; their numbers are for bert-base-uncased
    (12 x 768), 4,359 steps of 128 All-NLI triplets, sizes (2,32) ... (12,768).
Command: python -m launch.ablate --config=configs/ablations/starbucks.py \
    --workdir=runs/starbucks
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, seeds=(0,1).
Rows: plain is one full model that is truncated only for evaluation ("BERT" in the
    paper); separate trains a model per depth; the others train one for all sizes.
Cost: 18 runs of 1 to 5 minutes on 2 CPU cores at steps=96.
Expected: the table of notebooks/README.md#six-sizes-from-one-model, 21 November 2026.
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

# (depth, width) of each column
SIZES = ((1, 16), (2, 32), (3, 64), (4, 128), (5, 256), (6, 384))


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=128, seeds=(0, 1))
    variant = f"model={arg.model},data={arg.data},steps={arg.steps}"
    sizes = SIZES
    evals = {"stsb": section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz")}
    if arg.tiny:
        variant, sizes = "tiny", ((1, 2), (3, 8), (6, 48))
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    config = {
        "title": "STS-B test, Spearman × 100, by depth × width",
        "rows": (
            ("plain", f"configs/separate.py:depth={sizes[-1][0]},{variant}"),
            ("separate", "configs/separate.py:depth={depth}," + variant),
            ("mse2d", f"configs/mse2d.py:{variant}"),
            ("matryoshka", f"configs/matryoshka.py:{variant}"),
            ("starbucks_sts", f"configs/starbucks_sts.py:{variant}"),
        ),
        "columns": tuple((f"{n} × {d}", {"depth": n, "dim": d}) for n, d in sizes),
        "seeds": arg.seeds,
        "evals": evals,
        "reference": "starbucks_sts",
    }
    # The published scores of the same methods, at their sizes.
    if not arg.tiny:
        config["paper"] = {
            "plain": (59.19, 60.21, 61.28, 64.33, 73.31, 84.11),
            "separate": (71.34, 73.99, 78.53, 81.74, 82.59, 84.11),
            "mse2d": (71.97, 73.11, 75.01, 77.21, 78.50, 81.96),
            "starbucks_sts": (74.13, 76.21, 78.38, 81.12, 81.96, 82.58),
        }
        config["note"] = (
            "The paper's numbers are for bert-base-uncased at (2, 32) (4, 64) (6, 128) "
            "(8, 256) (10, 512) (12, 768), a single run of 4,359 steps."
        )
    return ml_collections.ConfigDict(config)
