"""Longer texts for a model with 512 learned positions: all training-free methods.

Source: Zhu et al. 2024, arXiv:2404.12096 (LongEmbed), section 4.1 and table 3.
Command: python -m launch.ablate --config=configs/ablations/absolute_positions.py \
    --workdir=runs/absolute_positions
Variants: tiny, model=NAME, data=DIR.
Rows: "cut" uses the first 512 tokens; grouped, recurrent and interpolated extend the
    position table to the length of the column, grouped by the smallest factor for each
    text, as in the authors' code; "windows" averages the vectors of windows of 512
    tokens.
Columns: qmsum L: nDCG@10 of QMSum with the first L tokens. passkey L: Acc@1 of passkeys
    of nominal length L, with L tokens but at least 512.
Cost: no training; 45 evaluations, 20 to 40 minutes per row on 2 CPU cores, half of it
    for QMSum at 4,096 tokens.
Expected: the table of notebooks/README.md#longer-contexts-all-minilm-l6-v2, 27 November
    2026.
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

ORIGINAL = 512
# {row: its fields}; "{scale}" is a value of the column
ROWS = {
    "cut": {},
    "grouped": {"extend": "grouped(scale={scale}, per_text=True)"},
    "recurrent": {"extend": "recurrent(scale={scale})"},
    "interpolated": {"extend": "interpolated(scale={scale})"},
    "windows": {"chunk": "pcw(512)"},
}


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA)
    lengths = (256, 512) if arg.tiny else (256, 512, 1_024, 2_048, 4_096)
    evals = {"qmsum": section(EVALS, "retrieval", data=f"{arg.data}/qmsum")}
    columns = {}
    for length in lengths:
        evals[f"passkey {length}"] = section(
            EVALS, "longembed", tasks=("passkey",), lengths=(length,)
        )
    # A column for each task and length; the model embeds at least 512 tokens.
    for task in ("passkey",) if arg.tiny else ("qmsum", "passkey"):
        for length in lengths:
            if task == "qmsum" and length < ORIGINAL:
                continue
            most = max(length, ORIGINAL)
            columns[f"{task} {length}"] = {
                "max_length": most,
                "scale": most // ORIGINAL,
                "eval": task if task == "qmsum" else f"{task} {length}",
                "panel": task,
            }
    if arg.tiny:
        del evals["qmsum"]
    return ml_collections.ConfigDict(
        {
            "title": "512 learned positions, read at more",
            "rows": tuple(
                (name, {"recipe": f"model={arg.model}", **fields})
                for name, fields in ROWS.items()
            ),
            "columns": tuple(columns.items()),
            "seeds": (0,),
            "evals": evals,
        }
    )
