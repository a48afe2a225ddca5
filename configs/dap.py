"""DAP: a translation among those of the batch, and its tokens from the source's.

Source: Li et al. 2023, arXiv:2305.09148 (Dual-Alignment Pre-training), and the code of
    ChillingDream/DAP: mBERT or XLM-R, tanh of a dense layer on the first token in
    training and the token's state afterwards, temperature 0.05, a margin in units of
    the logits, 32 tokens, batch 1,024, 100,000 steps, 5e-5. A decoder of two blocks
    predicts the tokens of the English side from the states of the other one, at a
    weight of 0.1; here its prediction head and the vector of its masks are random.
Command: python -m launch.train --config=configs/dap.py --workdir=runs/dap
Variants: tiny, model=NAME (with a tokenizer that knows the languages), data=DIR (with
    tatoeba/), languages=("deu","fra"), held_out=CODE, steps=N, batch=N, margin=X,
    both (both directions), alone (the ranking without the tokens, at 3e-5).
Cost: the tokens take a second pass of the encoder.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    make_base,
    make_bitext_evals,
    make_bitext_sources,
    parse_arg,
    start_from,
    tiny,
)
from research.config_sections import section
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES

TEMPERATURE = 0.05


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "margin": 0.0}
    options |= {"languages": ("deu", "fra"), "held_out": "spa", "both": False}
    options["alone"] = False
    arg = parse_arg(arg, **options, steps=500, batch=128)
    config = make_base()
    config.steps, config.batch_size = arg.steps, arg.batch
    config.optimizer.learning_rate = 3e-5 if arg.alone else 5e-5
    config.pool = section(POOLINGS, "cls")
    if arg.alone:
        config.objective.head = "tanh"
    else:
        config.objective = section(OBJECTIVES, "dap")
    # The margin is subtracted after the temperature
    config.loss = section(
        LOSSES,
        "infonce",
        temperature=TEMPERATURE,
        positive_margin=TEMPERATURE * arg.margin,
        symmetric=arg.both,
    )
    config.max_length = 32
    if not arg.alone:
        config.objective.length = config.max_length
    if arg.tiny:
        tiny(config)
        return config
    start_from(config, arg.model)
    config.data = make_bitext_sources(arg.data, arg.languages)
    config.evals = make_bitext_evals(arg.data, arg.held_out)
    return config
