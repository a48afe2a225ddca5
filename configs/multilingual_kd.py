"""Multilingual knowledge distillation: a sentence and its translation get one vector.

Source: Reimers and Gurevych 2020, arXiv:2004.09813: the squared error of the student's
    vectors of an English sentence and of its translation from the teacher's vector of
    the English sentence (of unit vectors, if the teacher gives these); XLM-R as
    student, and, from memory, not checked: batch 64, 2e-5, up to 20 epochs, 128 tokens.
    Here Tatoeba's sentences, one language of which is held out.
Command: python -m launch.train --config=configs/multilingual_kd.py --workdir=runs/mkd
Variants: tiny, model=NAME (the student, whose tokenizer should know the languages),
    teacher=NAME (it embeds within the step), queries=FILE (the teacher's vectors of the
    English sentences, from launch.embed --examples --role=query), data=DIR (with
    tatoeba/), languages=("deu","fra"), held_out=CODE, steps=N, batch=N.
Cost: a step also embeds the batch by the teacher, forward only.
Expected: F1 of bitext mining after 200 steps, the table of
    notebooks/README.md#a-multilingual-student-of-an-english-teacher, 27 November 2026.
"""

from configs.common import (
    DATA,
    MINILM,
    make_base,
    make_bitext_evals,
    make_bitext_sources,
    parse_arg,
    start_from,
    teach,
    tiny,
)
from research.config_sections import section
from research.interop.load import load
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "teacher": MINILM, "data": DATA}
    options |= {"languages": ("deu", "fra"), "held_out": "spa", "queries": ""}
    arg = parse_arg(arg, **options, steps=500, batch=64)
    config = make_base()
    config.steps, config.batch_size = arg.steps, arg.batch
    config.optimizer.learning_rate, config.optimizer.warmup = 2e-5, 0.1
    # English sentences are the queries, whose vectors are all texts' targets
    normalize = load(arg.teacher, weights=False).normalize
    options = {"documents": "query", "normalize": normalize}
    config.loss = section(LOSSES, "embedding_mse", **options)
    if arg.tiny:
        tiny(config)
        _project(config, arg.teacher)
    else:
        start_from(config, arg.model)
        config.data = make_bitext_sources(arg.data, arg.languages, query="sentence2")
        config.evals = make_bitext_evals(arg.data, arg.held_out)
        if load(arg.model, weights=False).full_width != _find_width(arg.teacher):
            _project(config, arg.teacher)
    teach(config, arg.teacher, arg.queries)
    return config


def _project(config, teacher: str) -> None:
    """Adds a layer to the teacher's width, a part of the trained model."""
    config.objective.head, config.objective.keep_head = "linear", True
    config.objective.head_width = _find_width(teacher)


def _find_width(model: str) -> int:
    return load(model, weights=False).width
