"""MetaEmbed: vectors of meta tokens after each text, of which the first few do.

Source: Xiao et al. 2025, arXiv:2509.18095: learned meta tokens after each text, whose
    states are its vectors, compared by MaxSim at temperature 0.03, and a loss for each
    of five groups of first vectors, (1, 1) ... (16, 64). They train Qwen2.5-VL with
    LoRA on images and texts; here it is an encoder of texts, trained in full.
Command: python -m launch.train --config=configs/metaembed.py --workdir=runs/metaembed
    python -m launch.evaluate --model=runs/metaembed --task=retrieval --data=BEIR \\
        --token_transform="keep_first(4, 8)"
Variants: tiny, model=NAME (whose tokenizer has unused tokens), data=DIR (with
    squad_retrieval/), steps=N, groups=((1,1),(4,8)).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, train_on_squad
from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.text.prompts import PROMPTS

GROUPS = ((1, 1), (2, 4), (4, 8), (8, 16), (16, 64))


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": MINILM, "data": DATA, "steps": 128},
        groups=GROUPS,
    )
    config = fine_tuning(arg)
    # The states of the meta tokens, as they are
    config.pool = section(POOLINGS, "colbert", dim=0)
    config.similarity = "maxsim"
    config.loss = section(LOSSES, "infonce", temperature=0.03)
    config.optimizer.learning_rate = 1e-4
    changes = {}
    if arg.tiny:
        # A tiny tokenizer has no unused tokens
        arg.groups, changes = ((1, 1), (2, 4)), {"token": "[MASK]"}
        config.evals.pydocs.similarity = "maxsim"
    else:
        config.batch_size, config.max_length = 32, 256
        train_on_squad(config, arg.data, "maxsim")
    queries, documents = (max(numbers) for numbers in zip(*arg.groups, strict=True))
    counts = {"queries": queries, "documents": documents}
    config.prompt = section(PROMPTS, "metaembed", **counts, **changes)
    config.size_loss = section(SIZE_LOSSES, "nested_groups", groups=arg.groups)
    config.objective.query_tokens = queries
    config.objective.document_tokens = documents
    return config
