"""The pre-training objectives by name.

Each is name(cfg, text, *, keyword arguments) -> Objective of batches of type Rows.
"""

from research.causal import causal_lm, mntp
from research.electra import electra
from research.mae_lm import mae_lm, mask_later
from research.masked import mlm
from research.retromae import dupmae, retromae
from research.seed import seed
from research.smae import smae
from research.spans import cot_mae, declutr

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
}
