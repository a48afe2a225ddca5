"""BGE-M3: dense, sparse and multi-vector embeddings, whose summed score teaches each.

Source: Chen et al. 2024, arXiv:2402.03216, and its released code: XLM-RoBERTa with
    8,192 positions, [CLS] as the dense vector, a weight and a projected vector of each
    token; InfoNCE of the three scores and of their sum at temperature 0.02, and the
    sum as the teacher of each (self-distillation), with the factors of the code. They
    train the dense vector on 1.2 billion pairs first, then all three at 1e-5 with seven
    hard negatives per query, in many languages, with batches of texts of like length.
    Here all three from the start on SQuAD, with negatives of the batch.
Command: python -m launch.train --config=configs/bge_m3.py --workdir=runs/bge_m3
    python -m launch.evaluate --model=runs/bge_m3 --task=retrieval \
    --data=../shared/data/squad_retrieval --pool="m3(output='sparse')"
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/), pairs=FILE (query,
    positive and negatives, in place of SQuAD's), steps=N, batch=N, alone (without
    self-distillation), query_length=N, document_length=N (tokens).
Cost: the products of all tokens of queries and documents of a batch, as for ColBERT; a
    document has the vector of each of its tokens.
Expected: not measured here. Evaluations of the run are of the sum of all three; --pool
    chooses "dense", "sparse" or "multi_vector", and an export has the dense vector.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, train_on_squad
from research.config_sections import section
from research.data.sources import SOURCES
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "pairs": "", "steps": 128}
    options |= {"batch": 32, "alone": False}
    arg = parse_arg(arg, **options, query_length=48, document_length=196)
    config = fine_tuning(arg)
    config.pool = section(POOLINGS, "m3")
    config.similarity = "m3"
    config.loss = section(LOSSES, "m3", distill=not arg.alone)
    if arg.tiny:
        config.evals.pydocs.similarity = "m3"
        return config
    config.batch_size, config.max_length = arg.batch, arg.document_length
    train_on_squad(config, arg.data, "m3")
    if arg.pairs:
        config.data = {"pairs": section(SOURCES, "files", path=arg.pairs)}
    config.objective.query_tokens = arg.query_length
    config.objective.document_tokens = arg.document_length
    return config
