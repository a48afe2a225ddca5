"""LENS: weights of clusters of the vocabulary, from a decoder without its causal mask.

Source: Lei et al. 2025, arXiv:2501.09749, and their code: the output embeddings are
    clustered by k-means, 4,000 or 8,000 clusters; a text's vector is the maximum over
    its tokens of log(1 + relu(logit)), of length 1. They tune Mistral-7B with LoRA of
    rank 32 at 1e-4, temperature 0.02, 7 hard negatives, 512 tokens, one epoch. Here
    SQuAD's questions with in-batch negatives. Logits are those of a token's own state,
    where the authors take the state before it, and no instruction is left out.
Command: python -m launch.train --config=configs/lens.py:model=runs/mntp \\
    --workdir=runs/lens
Variants: tiny, model=NAME (a decoder, such as a run of configs/llm2vec_mntp.py), data=
    DIR (with squad_retrieval/), steps=N, clusters=N, rank=N (of LoRA).
Cost: not measured here.
Expected: not measured here.
"""

from configs import decoder
from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    start_from,
    train_on_squad,
)
from research.config_sections import section
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.tuning import TUNING


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 128},
        **{"clusters": 4_000, "rank": 32},
    )
    model, arg.model = arg.model, MINILM  # replaced by the decoder below
    config = fine_tuning(arg)
    if arg.tiny and not model:
        decoder.set_tiny_decoder(config, causal=False)
        arg.clusters = 16
    else:
        start_from(config, model or "runs/mntp", causal=False, dropout=0.0)
        config.batch_size, config.max_length = 32, 256
        train_on_squad(config, arg.data, "cosine")
    config.pool = section(POOLINGS, "lexicon", clusters=arg.clusters)
    config.tuning = section(TUNING, "lora", rank=arg.rank, alpha=2.0 * arg.rank)
    config.loss = section(LOSSES, "infonce", temperature=0.02)
    config.optimizer.learning_rate = 1e-4
    return config
