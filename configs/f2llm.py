"""F2LLM: a decoder tuned in one stage, with hard negatives alone for classes.

Source: Zhang et al. 2025, arXiv:2510.02294: all parameters of a Qwen3 on retrieval,
    classification and clustering at once, last-token pooling, an instruction before
    queries. Every query has hard negatives; other texts of the batch are negatives for
    retrieval only, since those of a class are alike. Here SQuAD has no hard negatives,
    and the documents of NLI and of classes have the instruction of their queries.
Command: python -m launch.train --config=configs/f2llm.py:model=DIR --workdir=DIR
Variants: tiny, model=NAME (any decoder), data=DIR (with nli/, squad_retrieval/,
    banking77/, trec/ and stsb/), steps=N, batch=N, dtype=float32 (for CPU).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, make_tiny_mixture, parse_arg, public_source
from configs.lora_llm import get_config as lora_llm
from configs.nv_embed import ASKED, NLI, RETRIEVAL, TASKS

HARD = "infonce(temperature=0.05, negatives='hard')"


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 1_000, "batch": 512},
        **{"dtype": "bfloat16"},
    )
    # All parameters are trained.
    names = ("model", "data", "steps", "batch", "dtype")
    variant = ",".join(f"{name}={arg[name]}" for name in names) + ",rank=0,rate=1e-5"
    config = lora_llm(f"tiny,{variant}" if arg.tiny else variant)
    config.loss.temperature = 0.05
    if arg.tiny:  # no hard negatives without files
        config.data = make_tiny_mixture(
            retrieval="", classes="infonce(temperature=0.1)"
        )
        return config
    config.data = {
        "nli": public_source(arg.data, "nli", query_prompt=NLI, document_prompt=NLI),
        "squad": public_source(arg.data, "squad", query_prompt=RETRIEVAL),
    }
    # Both sides are questions of a class, with the same prompt.
    for name, task in TASKS.items():
        prompt = ASKED.format(task)
        config.data[name] = public_source(
            arg.data, name, loss=HARD, query_prompt=prompt, document_prompt=prompt
        )
    return config
