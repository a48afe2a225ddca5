"""SLIM: a few weights of the vocabulary for each token, compared by MaxSim.

Source: Li et al. 2023, arXiv:2302.06587: log(1 + relu(logit)) of a masked language
    model, of which each token keeps the 20 largest, [CLS] none; sums over a query's
    tokens of the best product with a token of the document, as logits without a
    temperature; and 1e-5 times the sum of a text's weights. They train for 6 epochs on
    MS MARCO, with batches of 256 queries and 8 passages each, and search the first
    1,000 documents of an inverted index, where our search is exact. The sum is that of
    the weights which are kept.
Command: python -m launch.train --config=configs/slim.py --workdir=runs/slim
Variants: tiny, model=NAME (with the head of a masked language model, or it is new),
    data=DIR (with squad_retrieval/), steps=N, top=N, l1=X, query_length=N,
    document_length=N (tokens).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, train_on_squad
from research.config_sections import section
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": MINILM, "data": DATA, "steps": 128, "top": 20},
        **{"l1": 1e-5, "query_length": 32, "document_length": 180},
    )
    config = fine_tuning(arg)
    # A few weights for each token, compared as they are
    config.pool = section(POOLINGS, "slim", top=arg.top)
    config.normalize, config.similarity = False, "slim"
    options = {"terms": "infonce(temperature=1.0) | l1()", "weights": (1.0, arg.l1)}
    config.loss = section(LOSSES, "weighted_sum", **options)
    config.optimizer.learning_rate = 1e-4
    if arg.tiny:
        config.evals.pydocs.similarity = "slim"
        return config
    # Fewer tokens than a row has, whose terms are compared
    config.batch_size, config.max_length = 32, arg.document_length
    train_on_squad(config, arg.data, "slim")
    config.objective.query_tokens = arg.query_length
    config.objective.document_tokens = arg.document_length
    return config
