"""The table of training objectives.

Each entry is a function that returns an Objective: objective(cfg, pool, size_loss, *,
options) for pairs, or objective(cfg, tokenizer, *, options) for rows of raw text. Its
kind is declared by a decorator (see `objective_inputs`).
"""

from collections.abc import Mapping
from typing import Any

from research.objectives.causal import causal_lm, mntp
from research.objectives.classification import classify_pairs
from research.objectives.contrastive import contrastive
from research.objectives.dap import dap
from research.objectives.electra import electra
from research.objectives.frozen.vector_heads import sparse_autoencoder, vector_head
from research.objectives.gem import gem
from research.objectives.gritlm import gritlm
from research.objectives.inputs import ObjectiveInputs
from research.objectives.mae_lm import mae_lm, mask_later
from research.objectives.mlm import mlm
from research.objectives.product_quantization import product_quantization
from research.objectives.retromae import dupmae, retromae
from research.objectives.seed import seed
from research.objectives.smae import smae
from research.objectives.spans import cot_mae, declutr

# Each function is decorated by `reads_pairs`, `reads_rows` or `reads_spans`.
OBJECTIVES = {
    "contrastive": contrastive,
    "gritlm": gritlm,
    "classify_pairs": classify_pairs,
    "dap": dap,
    "vector_head": vector_head,
    "sparse_autoencoder": sparse_autoencoder,
    "product_quantization": product_quantization,
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


def objective_inputs(name: str) -> ObjectiveInputs:
    """The batches that an objective is trained on.

    Raises:
        ValueError: There is no such objective.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name].inputs


def check_row_layout(objective: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    """Checks that the sections of an objective and of its row layout agree.

    Raises:
        ValueError: The objective needs another row layout.
    """
    name = objective["name"]
    kind = objective_inputs(name).span_kind
    if not kind:
        return
    if (layout["name"], layout.get("kind")) != ("spans", kind):
        raise ValueError(f"{name} needs row_layout.name 'spans' of kind '{kind}'")
    # DeCLUTR divides rows into groups by these numbers
    for argument in ("anchors", "positives"):
        in_layout, in_objective = layout.get(argument), objective.get(argument)
        if in_objective is not None and in_layout != in_objective:
            raise ValueError(
                f"row_layout.{argument} is {in_layout} and objective.{argument} "
                f"{in_objective}; they should be equal"
            )
