"""KaLM-Embedding-V2: a bidirectional decoder, focal weights and mixed hard negatives.

Source: Zhao et al. 2025, arXiv:2506.20923: Qwen2-0.5B without its causal mask, mean
    pooling, an instruction before queries, temperature 0.01, seven hard negatives and
    mixtures of them, the loss of a query weighted by (1 - p)^0.5, Matryoshka. Mixtures
    of all negatives, and weights without gradient, are not verified. The teacher of
    version 2.5 is left out.
Command: python -m launch.train --config=configs/kalm_v2.py:model=DIR --workdir=DIR
Variants: tiny, model=NAME (any decoder), data=DIR (with nli/, squad_retrieval/,
    banking77/, trec/ and stsb/), steps=N, batch=N, dtype=float32 (for CPU), focal=X,
    mined=FILE (query, positive and several negatives, as launch.mine writes them).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    make_tiny_mixture,
    parse_arg,
    public_source,
    starbucks_dims,
)
from configs.lora_llm import get_config as lora_llm
from configs.nv_embed import ASKED, NLI, RETRIEVAL, TASKS
from research.config_sections import section
from research.data.sources import SOURCES
from research.losses.matryoshka import SIZE_LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 1_000, "batch": 512},
        **{"dtype": "bfloat16", "focal": 0.5, "mined": ""},
    )
    # All parameters of a decoder without its causal mask are trained.
    names = ("model", "data", "steps", "batch", "dtype")
    variant = ",".join(f"{name}={arg[name]}" for name in names)
    variant += ",rank=0,rate=1e-5,bidirectional"
    config = lora_llm(f"tiny,{variant}" if arg.tiny else variant)
    config.loss.temperature, config.loss.focal = 0.01, arg.focal
    # Mixtures where there are hard negatives, which for classes are all negatives.
    soft = f"temperature=0.01, focal={arg.focal}"
    mixed = f"{soft}, mixed_pairs=1, mixed_list=True"
    dims = starbucks_dims(config)
    config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=dims)
    if arg.tiny:
        config.data = make_tiny_mixture(retrieval="", classes=f"infonce({soft})")
        return config
    config.data = {
        "nli": public_source(arg.data, "nli", query_prompt=NLI),
        "squad": public_source(arg.data, "squad", query_prompt=RETRIEVAL),
    }
    if arg.mined:
        config.data["mined"] = section(
            SOURCES,
            "files",
            path=arg.mined,
            loss=f"infonce({mixed})",
            query_prompt=RETRIEVAL,
        )
    # Seven negatives of other classes for each text.
    for name, task in TASKS.items():
        config.data[name] = public_source(
            arg.data,
            name,
            loss=f"infonce({mixed}, negatives='hard')",
            negatives=7,
            query_prompt=ASKED.format(task),
        )
    return config
