"""SitEmb: chunks that are read within their context, next to a frozen baseline.

Source: Wu et al. 2025, arXiv:2508.01959: a model that reads a chunk alone is trained
    first and frozen; a second one reads the chunk within the text around it, and the
    sum of both similarities is trained, on 1.6 million pairs of notes and passages of
    books. The pooling of a chunk's tokens, the negatives of the same text and the
    temperature are not verified. Here SQuAD's questions, with the paragraphs of an
    article as chunks.
Command: python -m launch.train --config=configs/sitemb.py --workdir=runs/sitemb
    python -m launch.evaluate --model=runs/sitemb --task=retrieval \
    --data=../shared/data/squad_retrieval --context=1000 --join=BASELINE
Variants: tiny, model=NAME, baseline=NAME (the frozen model of chunks alone), alone
    (without it), data=DIR (with squad_retrieval/), pairs=FILE (with the columns query,
    positive and context, the text around the positive, in place of SQuAD), steps=N,
    batch=N, context=N (characters on each side), length=N (tokens).
Cost: a chunk costs as much as its context; a step also embeds by the baseline.
Expected: not measured here. Evaluations of the run read chunks alone, and score the
    trained half of the sum; the command above reads them in context and adds the rest.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, teach
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.losses.registry import LOSSES

# From memory of similar models; the paper's was not at hand
TEMPERATURE = 0.02
COLUMNS = "query=query, positive=positive, context=context"


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "baseline": MINILM, "alone": False}
    options |= {"data": DATA, "pairs": "", "steps": 500, "batch": 32}
    arg = parse_arg(arg, **options, context=1_000, length=256)
    config = fine_tuning(arg)
    config.optimizer.learning_rate = 2e-5
    name = "infonce" if arg.alone else "situated"
    config.loss = section(LOSSES, name, temperature=TEMPERATURE)
    if not arg.alone:
        teach(config, arg.baseline)
    if arg.tiny:
        chunks = {"path": "pydocs", "words": (10, 40), "overlap": (0, 5)}
        config.data = {"chunks": section(SOURCES, "chunks", limit=400, **chunks)}
        return config
    # Chunks of SQuAD's articles, or of a file
    config.batch_size, config.max_length = arg.batch, arg.length
    folder = f"{arg.data}/squad_retrieval"
    config.data = {
        "squad": section(SOURCES, "passages", path=folder, context=arg.context)
    }
    if arg.pairs:
        pairs = section(SOURCES, "files", path=arg.pairs, columns=COLUMNS)
        config.data = {"pairs": pairs}
    config.evals = {"squad_dev": section(EVALS, "retrieval", data=folder, split="dev")}
    return config
