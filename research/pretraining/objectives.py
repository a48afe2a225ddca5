"""The pre-training objectives by name.

Each is name(cfg, text, *, keyword arguments) -> Objective of batches of type Rows.
"""

from collections.abc import Mapping
from typing import Any

from research.pretraining.causal import causal_lm, mntp
from research.pretraining.electra import electra
from research.pretraining.gem import gem
from research.pretraining.mae_lm import mae_lm, mask_later
from research.pretraining.masked import mlm
from research.pretraining.retromae import dupmae, retromae
from research.pretraining.seed import seed
from research.pretraining.smae import smae
from research.pretraining.spans import cot_mae, declutr

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
        raise ValueError(f"{name} needs rows.name 'spans' of kind '{kind}'")
    for argument in ("anchors", "positives"):
        here, there = rows.get(argument), objective.get(argument)
        if there is not None and here != there:
            raise ValueError(
                f"rows.{argument} is {here} and objective.{argument} {there}; they "
                "should be equal"
            )
