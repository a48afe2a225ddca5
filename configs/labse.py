"""LaBSE's translation ranking: both directions, with a margin below the similarity.

Source: Feng et al. 2022, arXiv:2007.01852, from memory, not checked: the first
    token's state, normalized; softmax over translations in both directions with a
    margin of 0.3 subtracted from the cosine of each pair, batch 4,096 over all devices,
    after pre-training by masked language modeling of sentences and of their
    translations. The scale of the cosines is ours, 20. The paper adds the two
    directions, of which this is the mean.
Command: python -m launch.train --config=configs/labse.py --workdir=runs/labse
Variants: tiny, model=NAME (with a tokenizer that knows the languages), data=DIR (with
    tatoeba/), languages=("deu","fra"), held_out=CODE, steps=N, batch=N, margin=X.
Cost: not measured here.
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


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "margin": 0.3}
    options |= {"languages": ("deu", "fra"), "held_out": "spa"}
    arg = parse_arg(arg, **options, steps=500, batch=128)
    config = make_base()
    config.steps, config.batch_size = arg.steps, arg.batch
    config.optimizer.learning_rate, config.optimizer.warmup = 5e-5, 0.1
    config.pool = section(POOLINGS, "cls")
    config.loss = section(
        LOSSES, "infonce", temperature=0.05, symmetric=True, positive_margin=arg.margin
    )
    if arg.tiny:
        tiny(config)
        return config
    config.max_length = 64
    start_from(config, arg.model)
    config.data = make_bitext_sources(arg.data, arg.languages)
    config.evals = make_bitext_evals(arg.data, arg.held_out)
    return config
