"""LLM2Vec, step 2: unsupervised SimCSE of the bidirectional decoder.

Source: BehnamGhader et al. 2024, arXiv:2404.05961, section 2.3: 1,000 steps of 128
    sentences of at most 128 tokens, scale 20 (temperature 0.05), 3e-5, mean pooling.
    Dropout is on attention weights only.
Command: python -m launch.train --config=configs/llm2vec_simcse.py:model=runs/mntp \
    --workdir=runs/llm2vec
Variants: tiny, model=NAME (a run of configs/llm2vec_mntp.py, or any decoder;
    default runs/mntp), data=DIR (with rawtext/ and stsb/), steps=N, dropout=P, rank=N
    (0 trains all parameters).
Cost: not measured here.
Expected: not measured here.
"""

from configs import decoder
from configs.common import DATA, parse_arg, start_from
from configs.simcse_unsup import get_config as simcse
from research.config_sections import section
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.tuning import TUNING


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg, tiny=False, model="", data=DATA, steps=200, dropout=0.3, rank=16
    )
    tiny = ",tiny" if arg.tiny else ""
    config = simcse(f"data={arg.data},steps={arg.steps}{tiny}")
    config.pool = section(BASIC_POOLINGS, "mean")
    config.objective.head = "none"  # no dense layer after the pooling
    # LoRA, unless all parameters are trained.
    if arg.rank:
        lora = {"rank": arg.rank, "alpha": 2.0 * arg.rank, "dropout": 0.05}
        config.tuning = section(TUNING, "lora", **lora)
    # Dropout of attention weights makes the two views of a sentence.
    if arg.tiny and not arg.model:
        body = decoder.get_config("tiny")
        config.tokenizer, config.encoder = body.tokenizer, body.encoder
        config.encoder.causal, config.encoder.attention_dropout = False, arg.dropout
        return config
    views = {"dropout": 0.0, "attention_dropout": arg.dropout}
    start_from(config, arg.model or "runs/mntp", causal=False, **views)
    if not arg.tiny:
        config.batch_size, config.max_length = 128, 128
    return config
