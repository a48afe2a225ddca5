"""SPLADE: weights of the vocabulary's tokens; with doc, queries without an encoder.

Source: Formal et al. 2021, arXiv:2109.10086 (SPLADE v2): the maximum over a text's
    tokens of log(1 + relu(logit)) of a masked language model, dot products without a
    temperature, in-batch negatives, and the FLOPS regularizer (Paria et al. 2020),
    whose factors rise with the square of the step. They train DistilBERT with
    factors of 3e-4 for queries and 1e-4 for documents, batch 128, 2e-5, 150,000
    steps on MS MARCO. With doc, queries are the sets of their tokens (SPLADE-doc).
Command: python -m launch.train --config=configs/splade.py --workdir=runs/splade
    python -m launch.train --config=configs/splade.py:doc --workdir=runs/splade_doc
Variants: tiny, model=NAME (with the head of a masked language model, or it is new),
    data=DIR (with squad_retrieval/), steps=N, doc, query_flops=X, document_flops=X.
Cost: 30 seconds of a CPU core for a step at 96 tokens of 32 pairs.
Expected: notebooks/README.md#kinds-of-embeddings, 28 November 2026.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, train_on_squad
from research.config_sections import section
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.text.prompts import PROMPTS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": MINILM, "data": DATA, "steps": 400, "doc": False},
        **{"query_flops": 3e-4, "document_flops": 1e-4},
    )
    config = fine_tuning(arg)
    # Sparse weights, compared as they are
    config.pool = section(POOLINGS, "splade_doc" if arg.doc else "splade")
    config.normalize, config.similarity = False, "dot"
    # Queries without an encoder have as many terms as tokens
    query = 0.0 if arg.doc else arg.query_flops
    penalty = f"flops(query={query}, document={arg.document_flops})"
    terms = f"infonce(temperature=1.0) | {penalty}"
    config.loss = section(LOSSES, "weighted_sum", terms=terms)
    config.optimizer.learning_rate = 1e-4
    if arg.doc:
        config.prompt = section(PROMPTS, "inference_free")
    if arg.tiny:
        config.evals.pydocs.similarity = "dot"
        return config
    config.batch_size, config.max_length = 32, 196
    train_on_squad(config, arg.data, "dot")
    return config
