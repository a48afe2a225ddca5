"""Stella and Jasper: vectors, similarities and their order are those of a teacher.

Source: Zhang et al. 2024, arXiv:2412.19048, and the code of NovaSearch's RAG-Retrieval:
    three losses of weights 10, 200 and 20, margin 0.015, eight widths; a linear layer
    to the teacher's width, which is kept; 1e-4, 5 % warm-up, batch 128, 2 epochs, 512
    tokens, without shuffling. The teachers are two models, concatenated. Here batch 32
    of shuffled NLI triplets, 128 tokens, one teacher and five widths.
Command: python -m launch.train --config=configs/stella.py --workdir=runs/stella
Variants: tiny, model=NAME, teacher=NAME (it embeds within the step), queries=FILE and
    documents=FILE (vectors that launch.embed --examples wrote, instead), data=DIR (with
    nli/ and stsb/), steps=N, batch=N. Two teachers:
    --config.teacher="vectors(queries=('a.npy', 'b.npy'), documents=('c.npy', 'd.npy'))"
Cost: the third loss grows with the fourth power of the number of texts of a batch.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, teach
from research.config_sections import section
from research.interop.load import load
from research.losses.registry import LOSSES

# Parts of the teacher's width at which similarities are compared
PARTS = (14, 7, 4, 2, 1)


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "teacher": MINILM, "data": DATA}
    options |= {"queries": "", "documents": "", "steps": 1_000, "batch": 32}
    arg = parse_arg(arg, **options)
    config = fine_tuning(arg)
    config.optimizer.learning_rate, config.optimizer.warmup = 1e-4, 0.05
    # The layer to the teacher's width is a part of the trained model
    width = load(arg.teacher, weights=False).width
    config.objective.head, config.objective.head_width = "linear", width
    config.objective.keep_head = True
    widths = tuple(width // part for part in PARTS)
    config.loss = section(LOSSES, "stella", widths=widths)
    if not arg.tiny:
        config.batch_size = arg.batch
    teach(config, arg.teacher, arg.queries, arg.documents)
    return config
