"""E5-Mistral: a decoder with LoRA on several tasks, each with its instruction.

Source: Wang et al. 2024, arXiv:2401.00368: LoRA and last-token pooling, InfoNCE with
    one hard negative; queries begin with an instruction for their task, and documents
    do too where both sides are alike. From memory, not checked: rank 16, temperature
    0.02, 1e-4, batches of 2,048. Their synthetic data comes as a file: generated=FILE.
Command: python -m launch.train --config=configs/e5_mistral.py:model=DIR --workdir=DIR
Variants: tiny, model=NAME (any decoder), data=DIR (with nli/, squad_retrieval/ and
    stsb/), steps=N, batch=N, rank=N, dtype=float32 (for CPU), generated=FILE (query,
    positive and negative).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, parse_arg, public_source
from configs.lora_llm import get_config as lora_llm
from configs.nv_embed import NLI, RETRIEVAL
from research.config_sections import section
from research.data.sources import SOURCES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 1_000, "batch": 512},
        **{"rank": 16, "dtype": "bfloat16", "generated": ""},
    )
    # The decoder, its LoRA and its pooling are those of configs/lora_llm.py.
    names = ("model", "data", "steps", "batch", "rank", "dtype")
    variant = ",".join(f"{name}={arg[name]}" for name in names)
    config = lora_llm(f"tiny,{variant}" if arg.tiny else variant)
    if arg.tiny:
        config.data.pairs.query_prompt = RETRIEVAL
        return config
    # Both sides of NLI are sentences; documents of retrieval have no instruction.
    config.data = {
        "nli": public_source(arg.data, "nli", query_prompt=NLI, document_prompt=NLI),
        "squad": public_source(arg.data, "squad", query_prompt=RETRIEVAL),
    }
    if arg.generated:
        config.data["generated"] = section(
            SOURCES, "files", path=arg.generated, query_prompt=RETRIEVAL
        )
    return config
