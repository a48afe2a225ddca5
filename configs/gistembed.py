"""GISTEmbed: in-batch negatives that a frozen guide takes for positives are left out.

Source: Solatorio 2024, arXiv:2402.16829: the guide WhereIsAI/UAE-Large-V1, students
    bge-small to bge-large, MEDI and triplets of MTEB's classification sets, 40 epochs,
    batch 16, 5e-6, 10 % warm-up, 512 tokens, temperature 0.01. Here NLI triplets.
Command: python -m launch.train --config=configs/gistembed.py --workdir=runs/gist
Variants: tiny, model=NAME, guide=NAME (any model; it embeds within the step), data=DIR
    (with nli/ and stsb/), steps=N, batch=N. A margin below the guide's positive:
    --config.loss.margin=0.05, the code's hard mode: --config.loss.hard=True
Cost: a step also embeds the batch by the guide, forward only.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, teach
from research.config_sections import section
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "guide": MINILM, "data": DATA}
    arg = parse_arg(arg, **options, steps=1_000, batch=16)
    config = fine_tuning(arg)
    # The paper's settings where they differ from `fine_tuning`
    config.optimizer.learning_rate = 5e-6
    config.loss = section(LOSSES, "gist")
    if not arg.tiny:
        config.batch_size = arg.batch
    teach(config, arg.guide)
    return config
