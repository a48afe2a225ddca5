"""Granite's sparse embeddings: SPLADE, with the scores of a dense teacher.

Source: Awasthy et al. 2025, arXiv:2502.20204, of whose sparse model we know the kind
    alone: weights of the vocabulary of a small RoBERTa (6 blocks of 384), distilled.
    Its data, losses and factors are not public; the divergence from the teacher's
    scores of all documents of the batch, the contrastive loss and the factors of the
    FLOPS regularizer are ours.
Command: python -m launch.train --config=configs/granite_sparse.py \\
    --workdir=runs/granite_sparse
Variants: tiny, model=NAME (with the head of a masked language model, or it is new),
    teacher=NAME (it embeds within the step), data=DIR (with squad_retrieval/), steps=N,
    top=N (the largest weights of a text that are kept, 0 for all), query_flops=X,
    document_flops=X.
Cost: a step also embeds the batch by the teacher, forward only.
Expected: not measured here.
"""

from configs import splade
from configs.common import DATA, MINILM, parse_arg, teach
from research.config_sections import section
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": MINILM, "teacher": MINILM, "data": DATA},
        **{"steps": 400, "top": 192, "query_flops": 3e-4, "document_flops": 1e-4},
    )
    names = ["model", "data", "steps", "query_flops", "document_flops"]
    items = [f"{name}={arg[name]}" for name in names]
    config = splade.get_config(",".join([*items, *(["tiny"] if arg.tiny else [])]))
    config.pool.top = arg.top
    # Dot products of weights have a larger scale than the teacher's cosines
    kl = "teacher_kl(documents='batch', teacher_temperature=0.05)"
    terms = f"{kl} | {config.loss.terms}"
    config.loss = section(LOSSES, "weighted_sum", terms=terms)
    teach(config, arg.teacher)
    return config
