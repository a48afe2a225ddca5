"""LLM2Vec, step 1: masked next-token prediction without the causal mask.

Source: BehnamGhader et al. 2024, arXiv:2404.05961, sections 2.1 and 2.2: 1,000 steps of
    32 texts of 512 tokens with LoRA of rank 16; a fifth of the tokens is masked by "_"
    and predicted (Llama).
Command: python -m launch.train --config=configs/llm2vec_mntp.py:model=runs/decoder \
    --workdir=runs/mntp
Variants: tiny, model=NAME (any decoder; default runs/decoder), data=DIR (with rawtext/
    and stsb/), steps=N, rank=N (0 trains all parameters). With the masking of the
    paper's Mistral:
    --config.objective.ratio=0.8 --config.objective.replace="(1.0, 0.0)"
Cost: not measured here.
Expected: not measured here.
"""

from configs import decoder
from configs.common import DATA, parse_arg, pre_training, start_from
from research.config_sections import section
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model="", data=DATA, steps=200, rank=16)
    tiny = ",tiny" if arg.tiny else ""
    config = pre_training(f"data={arg.data},steps={arg.steps}{tiny}", pool="mean")
    config.objective = section(OBJECTIVES, "mntp")
    config.optimizer.learning_rate = 1e-4
    # LoRA, unless all parameters are trained.
    if arg.rank:
        lora = {"rank": arg.rank, "alpha": 2.0 * arg.rank, "dropout": 0.05}
        config.tuning = section(TUNING, "lora", **lora)
    # The decoder without its causal mask: a tiny random one, or a model.
    if arg.tiny and not arg.model:
        decoder.set_tiny_decoder(config, causal=False)
    else:
        start_from(config, arg.model or "runs/decoder", causal=False, dropout=0.0)
    return config
