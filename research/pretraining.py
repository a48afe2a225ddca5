"""The pre-training objectives by name.

Each is name(cfg, text, *, keyword arguments) -> Objective of batches of type Rows.
"""

from research.masked import mlm
from research.retromae import dupmae, retromae
from research.smae import smae

PRETRAINING = {"mlm": mlm, "retromae": retromae, "dupmae": dupmae, "smae": smae}
