"""The pre-training objectives by name.

Each is name(cfg, text, *, keyword arguments) -> Objective of batches of type Rows.
"""

from collections.abc import Mapping
from typing import Any

from research.objectives.causal import causal_lm, mntp
from research.objectives.contrastive import contrastive
from research.objectives.electra import electra
from research.objectives.gem import gem
from research.objectives.gritlm import gritlm
from research.objectives.mae_lm import mae_lm, mask_later
from research.objectives.mlm import mlm
from research.objectives.retromae import dupmae, retromae
from research.objectives.seed import seed
from research.objectives.smae import smae
from research.objectives.spans import cot_mae, declutr

OBJECTIVES = {"contrastive": contrastive, "gritlm": gritlm}
# objective -> the kind of spans that its rows have to hold.
SPANS = {"cot_mae": "cot", "declutr": "declutr"}
PRETRAINING = {
    "mlm": mlm,
    "retromae": retromae,
    "dupmae": dupmae,
    "smae": smae,
    "cot_mae": cot_mae,
    "seed": seed,
    "mae_lm": mae_lm,
    "mask_later": mask_later,
    "electra": electra,
    "declutr": declutr,
    "causal_lm": causal_lm,
    "mntp": mntp,
    "gem": gem,
}


def check_rows(objective: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Raises ValueError where an objective would misread rows of such a section."""
    name = objective["name"]
    if name not in SPANS:
        return
    kind = SPANS[name]
    if (rows["name"], rows.get("kind")) != ("spans", kind):
        raise ValueError(f"{name} needs row_layout.name 'spans' of kind '{kind}'")
    for argument in ("anchors", "positives"):
        here, there = rows.get(argument), objective.get(argument)
        if there is not None and here != there:
            raise ValueError(
                f"row_layout.{argument} is {here} and objective.{argument} {there}; they "
                "should be equal"
            )
