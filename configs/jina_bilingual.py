"""jina-embeddings-v2, bilingual: pairs of two languages, then a loss for each task.

Source: Mohr et al. 2024, arXiv:2402.17016: an encoder with ALiBi, pre-trained on texts
    of English and one other language; then pairs within and across the languages, with
    InfoNCE in both directions; then hard negatives and graded pairs, each with a loss
    of its own. From memory, not checked: temperature 0.05, and a loss of graded pairs
    that is their negative correlation (Pearson), for which cosent is here. Here
    Tatoeba's translations, NLI, SQuAD and STS-B, of which only the first has the other
    language.
Command: python -m launch.train --config=configs/jina_bilingual.py:model=DIR \
    --workdir=runs/pairs
    python -m launch.train --config=configs/jina_bilingual.py:stage=2,model=runs/pairs \
    --workdir=runs/jina_bilingual
Variants: tiny, stage=1|2, model=NAME (with a tokenizer that knows both languages),
    language=CODE (of Tatoeba, "deu" or another), data=DIR (with tatoeba/, pairs/, nli/,
    squad_retrieval/ and stsb/), steps=N, graded=FILE (sentence1, sentence2 and score
    from 0 to 5, of the other language).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    make_bitext_evals,
    make_bitext_sources,
    make_tiny_mixture,
    parse_arg,
    public_source,
    supplementary_pairs,
)
from research.config_sections import section
from research.data.sources import SOURCES

# Call text of the losses of pairs, of hard negatives and of graded pairs
BOTH = "infonce(temperature=0.05, symmetric=True)"
GRADED = "cosent(scale=20)"


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "steps": 1_000}
    options |= {"stage": 1, "language": "deu", "graded": ""}
    arg = parse_arg(arg, **options)
    if arg.stage not in (1, 2):
        raise ValueError(f"variant stage is {arg.stage}; allowed: 1, 2")
    config = fine_tuning(arg)
    config.loss.temperature, config.loss.symmetric = 0.05, arg.stage == 1
    if arg.stage == 2:
        config.optimizer.learning_rate = 2e-5
    if arg.tiny:
        config.data = make_tiny_mixture(bitext=BOTH, retrieval="")
        return config
    # Translations in both stages, with other pairs or with tasks
    bitext = make_bitext_sources(arg.data, (arg.language,))
    if arg.stage == 1:
        config.data = supplementary_pairs(arg.data) | bitext
    else:
        names = {"nli": "", "squad": BOTH, "stsb": GRADED}
        sets = {n: public_source(arg.data, n, loss=loss) for n, loss in names.items()}
        for source in bitext.values():
            source.loss = BOTH
        if arg.graded:
            file = {"path": arg.graded, "score_range": 5.0}
            sets["graded"] = section(SOURCES, "files", loss=GRADED, **file)
        config.data = sets | bitext
    config.evals.update(make_bitext_evals(arg.data, arg.language))
    return config
