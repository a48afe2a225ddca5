"""EmbeddingGemma's fine-tuning: hard negatives, spread-out vectors and a teacher's.

Source: Schechter Vera et al. 2025, arXiv:2509.20354: InfoNCE in which a query's hard
    negatives weigh more the harder they are (5 times the similarity), a spread-out
    term, and embedding matching of queries, positives and hard negatives, at 768, 512,
    256 and 128 dimensions; a projection of 768 to 3,072 to 768. The paper does not tell
    the temperature or the distance of matching: here 0.05 and 1 - cosine, averaged over
    queries, positives and hard negatives, whose sum the paper takes (with one hard
    negative 3 times as much). The head is one layer, to the teacher's width. NLI
    triplets.
Command: python -m launch.train --config=configs/embedding_gemma.py \
    --workdir=runs/gemma
Variants: tiny, model=NAME, teacher=NAME (it embeds within the step), data=DIR (with
    nli/ and stsb/), steps=N.
Cost: a step also embeds the batch by the teacher, forward only.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, teach
from research.config_sections import section
from research.interop.load import load
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES

TERMS = (
    "infonce(temperature=0.05, negatives='own', hardness=5.0)",
    "spread_out()",
    "embedding_cosine()",
)


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "teacher": MINILM, "data": DATA}
    arg = parse_arg(arg, **options, steps=1_000)
    config = fine_tuning(arg)
    config.loss = section(LOSSES, "weighted_sum", terms=" | ".join(TERMS))
    # Vectors of the teacher's width, and their prefixes
    width = load(arg.teacher, weights=False).width
    config.objective.head, config.objective.head_width = "linear", width
    config.objective.keep_head = True
    dims = (width, 2 * width // 3, width // 3, width // 6)
    config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=dims)
    teach(config, arg.teacher)
    return config
