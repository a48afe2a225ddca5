"""The effect of pre-training (none, MLM, RetroMAE, SMAE) on small sizes.

Source: Zhuang et al. 2024, arXiv:2410.13230: SMAE from bert-base-uncased, then
    Starbucks' fine-tuning, against fine-tuning alone. Here every objective pre-trains
    an encoder from scratch on equally many tokens, and starbucks_sts then trains it on
    NLI triplets and pairs.
Command: python -m launch.ablate --config=configs/ablations/smae.py --workdir=runs/smae
Variants: tiny, data=DIR (with rawtext/, nli/, pairs/, stsb/ and squad_retrieval/),
    steps=N (of pre-training), tuning=N (steps of fine-tuning), rate=X (their learning
    rate), depth=N, width=N, vocab_size=N, seeds=(0,1).
Rows: the pre-training objective; scratch has no pre-training, but mlm's tokenizer.
Columns: depth x width; STS-B test (Spearman x 100) and SQuAD paragraphs for questions
    (nDCG@10).
Sizes: 6 x 128 (2 heads), a vocabulary of 4,096, 64 rows of 128 tokens per step.
Cost: 6 pre-trainings and 8 fine-tunings, 85 minutes of one CPU core per seed.
Expected: the tables of notebooks/README.md#pre-training-for-small-sizes, 21 November
    2026.
"""

import ml_collections

from configs import mlm
from configs.common import DATA, parse_arg, starbucks_pairs
from research.config_sections import section
from research.eval.evaluators import EVALS

# {row: recipe of the pre-training}
ROWS = {"scratch": "mlm", "mlm": "mlm", "retromae": "retromae", "smae": "smae"}


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    shape = {"depth": 6, "width": 128, "vocab_size": 4_096}
    options = {"steps": 300, "tuning": 200, "rate": 5e-4, "seeds": (0, 1)}
    arg = parse_arg(arg, tiny=False, data=DATA, **options, **shape)
    before = ",".join(f"{name}={arg[name]}" for name in ("data", "steps", *shape))
    after = f"pairs,data={arg.data},steps={arg.tuning},rate={arg.rate}"
    evals = {
        "STS-B": section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz"),
        "SQuAD": section(EVALS, "retrieval", data=f"{arg.data}/squad_retrieval"),
    }
    # The tiny variant has one evaluator, which needs no files.
    if arg.tiny:
        before = after = "tiny"
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    # Every row is fine-tuned by the same recipe, from its own start.
    recipe = "configs/starbucks_sts.py:model={start}," + after
    sizes = starbucks_pairs(mlm.get_config(before))
    config = {
        "title": "Starbucks after pre-training, by depth × width",
        "rows": tuple(
            (
                row,
                {
                    "start": f"configs/{objective}.py:{before}",
                    "recipe": recipe + (",scratch" if row == "scratch" else ""),
                },
            )
            for row, objective in ROWS.items()
        ),
        "columns": tuple(
            (
                f"{name} {depth} × {dim}",
                {"depth": depth, "dim": dim, "eval": name, "panel": name},
            )
            for name in evals
            for depth, dim in sizes
        ),
        "seeds": arg.seeds,
        "evals": evals,
        "note": (
            "In the paper (bert-base-uncased, 12 × 768, one run) SMAE before the "
            "fine-tuning adds 1.5, 3.0, 3.0, 1.5, 0.6 and -0.2 points of STS to it."
        ),
    }
    return ml_collections.ConfigDict(config)
