"""GEM: a decoder learns to summarize the text before a special token in its state.

Source: Zhang et al. 2025, arXiv:2506.04344: decoders of 1 to 8 billion parameters
    predict the tokens after special tokens, which split the texts. Here there is one
    special token, the tokenizer's end token, in every second text.
Command: python -m launch.train --config=configs/gem.py:model=runs/decoder \
    --workdir=runs/gem
Variants: tiny, model=NAME (any decoder; default runs/decoder), data=DIR (with rawtext/
    and stsb/), steps=N.
Cost: not measured here.
Expected: not measured here.
"""

from configs import decoder
from configs.common import DATA, parse_arg, pre_training, start_from
from research.config_sections import section
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.registry import OBJECTIVES
from research.text.prompts import PROMPTS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model="", data=DATA, steps=200)
    tiny = ",tiny" if arg.tiny else ""
    config = pre_training(f"data={arg.data},steps={arg.steps}{tiny}")
    config.objective = section(OBJECTIVES, "gem")
    # The embedding is the state of the end token.
    config.prompt = section(PROMPTS, "template", query="{text}{eos}", pool="last")
    config.pool = section(BASIC_POOLINGS, "last")
    config.optimizer.learning_rate = 1e-4
    # The decoder: a tiny random one, or a model.
    if arg.tiny and not arg.model:
        decoder.set_tiny_decoder(config, causal=True)
    else:
        start_from(config, arg.model or "runs/decoder", dropout=0.0)
    return config
