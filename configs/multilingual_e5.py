"""Multilingual E5: the stages of E5 with pairs of translations.

Source: Wang et al. 2024, arXiv:2402.05672: the recipe of configs/e5.py from XLM-R, on a
    billion multilingual pairs, among them translations; the second stage adds labeled
    data of many languages. Here the translations are those of Tatoeba, 1,000 for each
    language, whose scores are then those of training data.
Command: python -m launch.train \
    --config=configs/multilingual_e5.py:model=intfloat/multilingual-e5-small \
    --workdir=runs/me5
Variants: tiny, stage=1|2, model=NAME (a multilingual encoder), data=DIR (with tatoeba/
    and what configs/e5.py needs), steps=N, languages=("deu","fra") (those of Tatoeba),
    exponent=X (shares of the sources grow with their sizes to this power).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, make_bitext_sources, parse_arg
from configs.e5 import PREFIXES
from configs.e5 import get_config as e5

LANGUAGES = ("ara", "cmn", "deu", "fra", "hin", "rus", "spa", "tur")


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"stage": 1, "languages": LANGUAGES, "exponent": 0.5}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=1_000, **options)
    # The stages of E5, then translations in both.
    tiny = ",tiny" if arg.tiny else ""
    variant = f"model={arg.model},data={arg.data},steps={arg.steps},stage={arg.stage}"
    config = e5(variant + tiny)
    config.data_exponent = arg.exponent
    if arg.tiny:
        return config
    for language, source in make_bitext_sources(arg.data, arg.languages).items():
        source.update(PREFIXES)
        config.data[f"tatoeba_{language}"] = source
    return config
