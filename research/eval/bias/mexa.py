"""MEXA: how well a model aligns other languages with a pivot language.

Kargaran et al. 2024, "MEXA: Multilingual Evaluation of English-Centric LLMs via
Cross-Lingual Alignment".
"""

import chex
import numpy as np

from research.data.corpus import find_corpus
from research.eval.tasks.files import read_bitext
from research.eval.tasks.splits import name_files
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator


def mexa(*, data: str, sentences: int = 100) -> Evaluator:
    """MEXA of the model's embeddings for each language, as an evaluator.

    Args:
        data: Files of translations, as in `read_languages`.
        sentences: Number of sentences, the first ones of each file.

    Returns:
        embed -> {"main_score", "deu-eng" ...} in percent; the main score is the mean.

    Raises:
        FileNotFoundError, ValueError: A file is missing or malformed.
    """
    if sentences < 2:
        raise ValueError(f"mexa of {sentences} sentences is undefined: give 2 or more")
    languages = {
        name: (first[:sentences], second[:sentences])
        for name, (first, second) in read_languages(data).items()
    }

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        scores = {
            name: 100
            * score_translations(embed(second, "query"), embed(first, "query"))
            for name, (first, second) in languages.items()
        }
        return {"main_score": float(np.mean(list(scores.values()))), **scores}

    return evaluate


def read_languages(data: str) -> dict[str, tuple[list[str], list[str]]]:
    """{language: (sentences, their translations into the pivot language)} of files.

    Args:
        data: A file with the fields sentence1 and sentence2, or a pattern such as
            "tatoeba/*-eng.jsonl.gz". The pivot is the language of sentence2, and a file
            is named after its language.

    Raises:
        FileNotFoundError, ValueError: A file is missing or malformed, or holds fewer
            than two sentences; or two files have one name.
    """
    # A file for each language.
    languages = {}
    for name, path in name_files(find_corpus([data])).items():
        pairs = read_bitext(path, allow_blank=False)
        if len(pairs[0]) < 2:
            raise ValueError(f"{path} holds fewer than two sentences")
        languages[name] = pairs
    return languages


def score_translations(pivot: np.ndarray, other: np.ndarray) -> float:
    """Share of sentences that are closest to their translation, both ways.

    A sentence counts if the cosine with its translation is larger than with every other
    sentence of the other language, and than that of the translation with every other
    sentence of its language. A tie does not count.

    Args:
        pivot: [N, D] vectors of sentences in the pivot language.
        other: [N, D] vectors of their translations.
    """
    chex.assert_equal_shape([pivot, other])
    # Unit vectors in double precision, so that ties are ties.
    x, y = (l2_normalize_rows(np.asarray(v, np.float64)) for v in (pivot, other))
    return score_cosines(x @ y.T)


def score_cosines(cosines: np.ndarray) -> float:
    """`score_translations` of the cosines [N, N] of sentences with all translations."""
    chex.assert_shape(cosines, (len(cosines), len(cosines)))
    diagonal = np.diagonal(cosines)
    is_own = np.eye(len(cosines), dtype=bool)
    wrong = np.where(is_own, -np.inf, cosines)  # [N, N]
    return float(np.mean((diagonal > wrong.max(0)) & (diagonal > wrong.max(1))))
