"""LG-ANNA-Embedding: a decoder with demonstrations, soft labels and mined negatives.

Source: arXiv:2506.07438: Mistral-7B with last-token pooling, an instruction and
    examples of the task before queries, scores of a retriever and a reranker as soft
    labels, and hard negatives that are below a margin from the positive's score. The
    weights and temperatures of the losses and the margin are not verified. Here LoRA,
    and on NLI and SQuAD no soft labels.
Command: python -m launch.mine --model=M --data=train.jsonl --relative_margin=0.05 \
    --cross_encoder=RERANKER --negatives=7 --output=scored.jsonl
    python -m launch.train --config=configs/lg_anna.py:model=DIR,scored=scored.jsonl \
    --workdir=DIR
Variants: tiny, model=NAME (any decoder), data=DIR (with nli/, squad_retrieval/ and
    stsb/), steps=N, batch=N, rank=N, dtype=float32 (for CPU), shots=N (0 to 2
    demonstrations, the same for all queries), scored=FILE (query, positive, negatives
    and scores), divisor=X (of these scores: 1 for the logits of a cross-encoder).
Cost: demonstrations lengthen every query.
Expected: not measured here.
"""

from configs.common import DATA, parse_arg, public_source
from configs.lora_llm import get_config as lora_llm
from research.config_sections import section
from research.data.sources import SOURCES
from research.text.prompts import PROMPTS

INSTRUCTION = "Given a question or a statement, retrieve a text that answers or follows"
# Queries and their answers, ours
EXAMPLES = (
    ("why is the sky blue", "Air scatters blue light more than red light."),
    ("two dogs run on a beach", "Animals are outdoors."),
)
# Call text of the loss of scored negatives
SOFT = (
    "weighted_sum(terms='infonce(temperature=0.02) | "
    "teacher_kl(temperature=0.02, teacher_temperature={})')"
)


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 1_000, "batch": 512},
        **{"rank": 16, "dtype": "bfloat16", "shots": 1, "scored": "", "divisor": 1.0},
    )
    if not 0 <= arg.shots <= len(EXAMPLES):
        raise ValueError(f"variant shots is {arg.shots}; allowed: 0, 1, 2")
    # The decoder, its LoRA and its pooling are those of configs/lora_llm.py.
    names = ("model", "data", "steps", "batch", "rank", "dtype")
    variant = ",".join(f"{name}={arg[name]}" for name in names)
    config = lora_llm(f"tiny,{variant}" if arg.tiny else variant)
    # Demonstrations would fill the short texts of a tiny run
    demonstrations = () if arg.tiny else EXAMPLES[: arg.shots]
    config.prompt = section(
        PROMPTS, "icl", instruction=INSTRUCTION, examples=demonstrations
    )
    if arg.tiny:
        config.max_length = 64
        return config
    # The prompt takes the place of those of the sources
    config.max_length = 256
    config.data = {name: public_source(arg.data, name) for name in ("nli", "squad")}
    if arg.scored:
        loss = SOFT.format(arg.divisor)
        config.data["scored"] = section(SOURCES, "files", path=arg.scored, loss=loss)
    return config
