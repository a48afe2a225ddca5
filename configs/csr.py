"""CSR: sparse latents of a frozen model's vectors, instead of a truncation.

Source: Wen et al. 2025, arXiv:2503.01776, and their code: a sparse autoencoder with
    tied weights, 4 times as many latents as dimensions, the 32 largest kept (texts);
    errors with k and 4 k latents, dead latents on the residual, and a contrastive loss
    at weight 0.1. They train on frozen vectors with Adam at 4e-5, batch 128, 10 epochs,
    and contrast at temperature 0.2. Here with AdamW, at 1e-3 and temperature 0.05.
Command: python -m launch.train --config=configs/csr.py --workdir=runs/csr
    With vectors that launch.embed wrote, the encoder is not run:
    python -m launch.embed --model=M --input=BEIR --output=documents.npy
    python -m launch.embed --model=M --input=BEIR/queries.jsonl.gz --role=query \\
        --output=queries.npy
    python -m launch.train --workdir=runs/csr \\
        --config=configs/csr.py:queries=queries.npy,documents=documents.npy,steps=2000
    python -m launch.evaluate --model=runs/csr --task=retrieval --data=BEIR
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/), steps=N, latents=N, k=N,
    rate=X (learning rate), queries=FILE and documents=FILE.
Cost: with vectors, 2,000 steps of 128 pairs take minutes on a CPU core.
Expected: not measured here.
"""

import ml_collections

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    teach,
    train_on_squad,
)
from research.config_sections import section
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": MINILM, "data": DATA, "steps": 400, "rate": 1e-3},
        **{"latents": 1_536, "k": 32, "queries": "", "documents": ""},
    )
    config = fine_tuning(arg)
    if arg.tiny:
        arg.latents, arg.k = 96, 8
    # A head over vectors that stay as they are
    config.pool = section(POOLINGS, "csr", latents=arg.latents, k=arg.k)
    config.objective = section(OBJECTIVES, "sparse_autoencoder", k=arg.k)
    config.loss = section(LOSSES, "infonce", temperature=0.05)
    train_head(config, arg)
    return config


def train_head(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict):
    """Trains a head over a frozen encoder's vectors, perhaps those of files, on SQuAD.

    Args:
        config: The recipe, with its objective.
        arg: Variants, of which tiny, data, rate, queries and documents are used.
    """
    config.tuning = section(TUNING, "frozen_encoder")
    config.normalize = False
    config.optimizer.learning_rate, config.optimizer.weight_decay = arg.rate, 0.0
    if arg.queries or arg.documents:
        teach(config, "", arg.queries, arg.documents)
        config.objective.stored = True
    if not arg.tiny:
        config.batch_size, config.max_length = 128, 256
        train_on_squad(config, arg.data, "cosine")
