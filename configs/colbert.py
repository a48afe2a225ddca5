"""ColBERT: a vector per token, compared by MaxSim, on pairs for retrieval.

Source: Khattab and Zaharia 2020, arXiv:2004.12832: markers before queries and
    documents, queries lengthened to 32 tokens by [MASK], a projection to 128 dims,
    punctuation of documents not scored, sums of best cosines without a temperature;
    and Santhanam et al. 2022, arXiv:2112.01488 (ColBERTv2), in-batch negatives. They
    train BERT-base on MS MARCO for 200,000 steps and more, at 3e-6.
Command: python -m launch.train --config=configs/colbert.py --workdir=runs/colbert
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/), steps=N, dim=N,
    query_length=N, document_length=N.
Cost: 10 minutes of a CPU core for 60 steps of 96 tokens.
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
        **{"tiny": False, "model": MINILM, "data": DATA, "steps": 128},
        **{"dim": 128, "query_length": 32, "document_length": 180},
    )
    config = fine_tuning(arg)
    # A vector per token; sums of cosines over a query are large enough as logits.
    config.pool = section(POOLINGS, "colbert", dim=arg.dim)
    config.similarity = "maxsim"
    config.loss = section(LOSSES, "infonce", temperature=1.0)
    config.optimizer.learning_rate = 1e-4
    # A tiny tokenizer has no unused tokens that could be markers.
    changes = {}
    if arg.tiny:
        arg.query_length, arg.document_length = 16, config.max_length
        changes = {"query_marker": "", "document_marker": ""}
        config.evals.pydocs.similarity = "maxsim"
    else:
        config.batch_size, config.max_length = 32, arg.document_length
        train_on_squad(config, arg.data, "maxsim")
    lengths = {
        "query_length": arg.query_length,
        "document_length": arg.document_length,
    }
    config.prompt = section(PROMPTS, "colbert", **lengths, **changes)
    config.objective.query_tokens = arg.query_length
    config.objective.document_tokens = arg.document_length
    return config
