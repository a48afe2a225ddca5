"""jina-embeddings-v3: a frozen encoder with LoRA adapters, a loss for each task.

Source: Sturua et al. 2024, arXiv:2409.10173: adapters of rank 4 and factor 1/4 for
    queries and passages of retrieval, for text matching (CoSENT of graded pairs), for
    classification (InfoNCE with hard negatives) and for separation, each trained by the
    batches of its data sets. Here retrieval is SQuAD and NLI, matching STS-B,
    classification Banking77, and there is no separation; adapters are on linear layers
    only.
Command: python -m launch.train --config=configs/jina_v3.py --workdir=runs/jina_v3
    python -m launch.export --model=runs/jina_v3 --adapter=matching --output=matching
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/, nli/, stsb/ and
    banking77/), steps=N, rank=N.
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    make_tiny_mixture,
    parse_arg,
    public_source,
)
from research.config_sections import section
from research.objectives.tuning import TUNING

# Sources without an adapter of their name use those of the roles, query and document.
ADAPTERS = ("query", "document", "matching", "classification")
LOSSES = {
    "matching": "cosent(scale=20)",
    "classification": "infonce(temperature=0.05, negatives='hard')",
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, rank=4)
    config = fine_tuning(arg)
    # Only the adapters are trained, of which a text goes through one.
    config.tuning = section(
        TUNING, "lora", rank=arg.rank, alpha=arg.rank / 4, adapters=ADAPTERS
    )
    config.optimizer.learning_rate = 5e-4
    config.loss.temperature = 0.05
    if arg.tiny:  # neither scores nor classes without files
        loss = "infonce(temperature=0.1)"
        config.data = make_tiny_mixture(
            retrieval="", matching=loss, classification=loss
        )
        return config
    # SQuAD and NLI go through the adapters of the roles.
    sets = {"squad": "squad", "nli": "nli", "matching": "stsb"}
    sets["classification"] = "banking77"
    config.data = {
        name: public_source(arg.data, public, loss=LOSSES.get(name, ""))
        for name, public in sets.items()
    }
    return config
