"""E5: prefixes "query: " and "passage: ", two stages; scores of a cross-encoder.

Source: Wang et al. 2022, arXiv:2212.03533: InfoNCE of temperature 0.01 and mean pooling
    in two stages: pairs from the web in batches of 32,768, then NLI, MS MARCO and NQ
    with hard negatives, where the scores of a cross-encoder are learned as well
    (Kullback-Leibler divergence, with InfoNCE at a weight of 0.2). Texts that are alike
    on both sides have "query: " on both there; here documents have "passage: " in all
    sets, so that the model has one prompt for each role. The pairs are those of public
    sets, and stage 2 has NLI and SQuAD; a file with scores is added by scored=FILE.
Command: python -m launch.train --config=configs/e5.py --workdir=runs/e5
    python -m launch.train --config=configs/e5.py:stage=2,model=runs/e5 \
    --workdir=runs/e5_tuned
Variants: tiny, stage=1|2, model=NAME, data=DIR (with pairs/, nli/, squad_retrieval/ and
    stsb/), steps=N, scored=FILE (query, positive, negatives and scores, as launch.mine
    --cross_encoder writes them), divisor=X (of these scores: 1 for the logits of a
    cross-encoder; about 0.05 for cosines, whose differences are small).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    public_source,
    supplementary_pairs,
)
from research.config_sections import section
from research.data.sources import SOURCES

QUERY, PASSAGE = "query: ", "passage: "
PREFIXES = {"query_prompt": QUERY, "document_prompt": PASSAGE}
# Call text of the loss of scored negatives
TEACHER = (
    "weighted_sum(terms='teacher_kl(temperature=0.01, teacher_temperature={}) | "
    "infonce(temperature=0.01)', weights=(1.0, 0.2))"
)


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"stage": 1, "scored": "", "divisor": 1.0}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, **options)
    if arg.stage not in (1, 2):
        raise ValueError(f"variant stage is {arg.stage}; allowed: 1, 2")
    config = fine_tuning(arg)
    config.loss.temperature = 0.01
    if arg.stage == 2:
        config.optimizer.learning_rate = 2e-5
    # One set of pairs that needs no files.
    if arg.tiny:
        config.data.pairs.update(PREFIXES)
        return config
    config.data = _mixture(arg)
    return config


def _mixture(arg) -> dict:
    """The data sources of a stage."""
    if arg.stage == 1:
        pairs = supplementary_pairs(arg.data)
        for source in pairs.values():
            source.update(PREFIXES)
        return pairs
    mixture = {
        name: public_source(arg.data, name, **PREFIXES) for name in ("nli", "squad")
    }
    # The scores of a cross-encoder, where there are any.
    if arg.scored:
        loss = TEACHER.format(arg.divisor)
        mixture["scored"] = section(
            SOURCES, "files", path=arg.scored, loss=loss, **PREFIXES
        )
    return mixture
