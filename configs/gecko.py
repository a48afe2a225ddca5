"""Gecko: generated queries, positives that a language model chose (both in files).

Source: Lee et al. 2024, arXiv:2403.20327: a language model writes a task and a query
    for a passage of the web, a retriever finds candidates, and the language model
    scores them in two ways, whose ranks are fused: the best is the positive, which
    often is not the passage, and a low one the hard negative. InfoNCE with other
    queries as negatives, too, widths 768 and 256. The shares of the data, the form of
    the prompt and the hyperparameters are not verified. No language model is here:
    both of its answers come in files.
Command: python -m launch.train --config=configs/gecko.py:ranked=ranked.jsonl \
    --workdir=runs/gecko
Variants: tiny, model=NAME, data=DIR (with nli/, squad_retrieval/ and stsb/), steps=N,
    batch=N, generated=FILE (query and passage, from which it was generated),
    ranked=FILE (query, task, seed, which is that passage, candidates, query_likelihood
    and relevance; see load_ranked_candidates), negative=lowest or others. A file takes
    half of the steps, NLI and SQuAD the others.
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, public_source
from research.config_sections import build, section
from research.data.sources import SOURCES
from research.experiment.initialization import ENCODERS
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "steps": 1_000}
    options |= {"batch": 64, "generated": "", "ranked": "", "negative": "lowest"}
    arg = parse_arg(arg, **options)
    config = fine_tuning(arg)
    config.batch_size = config.batch_size if arg.tiny else arg.batch
    config.loss = section(LOSSES, "infonce", temperature=0.05, same_side=True)
    # The full width and a third of it
    width = build(ENCODERS, config.encoder).width
    config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=(width, width // 3))
    if arg.tiny:
        return config
    # Files of what a language model wrote, each of its own kind
    files = {
        "generated": (arg.generated, {"columns": "query=query, positive=passage"}),
        "ranked": (arg.ranked, {"negative": arg.negative}),
    }
    kinds = {"generated": "files", "ranked": "ranked_candidates"}
    config.data = {
        name: section(SOURCES, kinds[name], path=path, **arguments)
        for name, (path, arguments) in files.items()
        if path
    }
    # Half of the steps, if there is a file
    weight = 0.5 * max(1, len(config.data))
    for name in ("nli", "squad"):
        config.data[name] = public_source(arg.data, name, weight=weight)
    return config
