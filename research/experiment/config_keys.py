"""The top-level keys of a config: which there are, their tables and their checks."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from tokenizers import Tokenizer

from research.config_sections import (
    Table,
    check_type,
    parse_section,
    parse_sections,
)
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.experiment.mining import MINING
from research.experiment.model_card import embedding_width
from research.experiment.teachers import TEACHERS
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.losses.size_terms import Pairs, check_pairs
from research.models.config import EncoderConfig
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES, check_row_layout, objective_inputs
from research.objectives.tuning import TUNING
from research.text.prompts import PROMPTS
from research.text.tokenization import num_token_ids
from research.train.averaging import AVERAGES
from research.train.optimizers import OPTIMIZERS

# Keys whose value is one section, and the functions that the section may name.
SECTION_TABLES: Mapping[str, Table] = {
    "tokenizer": TOKENIZERS,
    "encoder": ENCODERS,
    "prompt": PROMPTS,
    "pool": POOLINGS,
    "objective": OBJECTIVES,
    "tuning": TUNING,
    "loss": LOSSES,
    "size_loss": SIZE_LOSSES,
    "row_layout": ROW_LAYOUTS,
    "mining": MINING,
    "optimizer": OPTIMIZERS,
    "averaging": AVERAGES,
    "teacher": TEACHERS,
}
# Keys whose value maps names to sections.
GROUP_TABLES: Mapping[str, Table] = {
    "data": SOURCES,
    "evals": EVALS,
}
KEYS = (
    "seed",
    "steps",
    "batch_size",
    "max_length",
    "tokenizer",
    "encoder",
    "init_from",
    "position_methods",
    "prompt",
    "pool",
    "normalize",
    "objective",
    "tuning",
    "data",
    "optimizer",
    "averaging",
    "mesh",
    "evals",
    "eval_sizes",
    "log_every",
    "save_every",
    "keep",
    "keep_every",
    "keep_best",
    "eval_every",
    "patience",
)
CONTRASTIVE_KEYS = (
    *("loss", "size_loss", "similarity", "data_exponent"),
    *("teacher", "mining"),
)
PRETRAINING_KEYS = ("row_layout",)


# Types of the values that are no sections.
VALUE_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("seed", "steps", "batch_size", "max_length"), int),
    **dict.fromkeys(("log_every", "save_every", "keep", "keep_every"), int),
    **dict.fromkeys(("eval_every", "patience"), int),
    **dict.fromkeys(("init_from", "position_methods", "similarity", "keep_best"), str),
    "normalize": bool,
    "data_exponent": float,
    "eval_sizes": Pairs,
}
# The smallest values of numbers; an interval of 0 is the last step only.
SMALLEST = {
    1: ("steps", "batch_size", "max_length", "log_every", "keep"),
    0: ("save_every", "keep_every", "eval_every", "patience"),
}


def config_keys(objective: str) -> tuple[str, ...]:
    """The top-level keys of a config with this objective."""
    if objective_inputs(objective).is_pretraining:
        return KEYS + PRETRAINING_KEYS
    return KEYS + CONTRASTIVE_KEYS


def is_section(key: str) -> bool:
    """Whether a key such as "loss", "data" or "evals.stsb" can be set by a call."""
    head, _, name = key.partition(".")
    if head in GROUP_TABLES:
        return "." not in name
    return key in SECTION_TABLES


def replace_section(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets a section of a config, in place, by a call such as "cosent(scale=20)".

    Args:
        config: The config; a locked config stays locked.
        key: A key of SECTION_TABLES ("loss"), a key of GROUP_TABLES ("data"), or one
            entry of such a group ("data.nli").
        text: The call; several calls separated by | for a key of GROUP_TABLES.

    Raises:
        ValueError: The config has no such key, or the text is no valid section for it.
    """
    head, _, name = key.partition(".")
    if head not in config:
        raise ValueError(
            f"this config has no key {head}; its keys are {', '.join(sorted(config))}"
        )
    try:
        with config.unlocked():
            # One entry of a group, a full group, or a section
            if name:
                config[head][name] = parse_section(GROUP_TABLES[head], text)
            elif head in GROUP_TABLES:
                config[head] = parse_sections(GROUP_TABLES[head], text)
            else:
                config[head] = parse_section(SECTION_TABLES[head], text)
    except ValueError as error:
        raise ValueError(f"config.{key}: {error}") from None


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if keys are missing or unknown, or a number is out of range."""
    objective = config.objective.name if "objective" in config else "contrastive"
    allowed = config_keys(objective)
    # The top-level keys, which depend on the objective
    unknown = sorted(set(config) - set(allowed))
    missing = sorted(set(allowed) - set(config))
    if unknown or missing:
        problem = "unknown" if unknown else "missing"
        raise ValueError(
            f"{problem} config key {', '.join(unknown or missing)}; "
            f"the keys of {objective} are {', '.join(allowed)}"
        )
    # Top-level values: their types, the smallest of each number, and the seed
    for key, kind in VALUE_TYPES.items():
        if key in config:
            check_type("the config", key, config[key], kind)
    for smallest, keys in SMALLEST.items():
        for key in keys:
            if config[key] < smallest:
                raise ValueError(
                    f"{key} is {config[key]}; it should be at least {smallest}"
                )
    _check_keep_best(config)
    # Codes are of the vectors that the model gives
    unit = config.objective.get("unit")
    if unit is not None and unit != config.normalize:
        raise ValueError(
            f"objective.unit is {unit} and normalize is {config.normalize}; they "
            "should be equal"
        )
    if not config.data:
        raise ValueError("the config names no data")
    if "row_layout" in config:
        check_row_layout(config.objective, config.row_layout)


def _check_keep_best(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a best checkpoint that no evaluation can choose."""
    if not config.keep_best:
        if config.patience:
            raise ValueError(
                f"patience is {config.patience}, but keep_best does not name the score "
                'that should improve, such as "dev/main_score"'
            )
        return
    # The scores of an evaluation are known when it has run, before the first step
    name = config.keep_best.removeprefix("-").partition("/")[0]
    if name not in config.evals:
        raise ValueError(
            f"keep_best is {config.keep_best!r}, but the config's evaluations are "
            f"{', '.join(config.evals) or 'none'}; it should be "
            f"{next(iter(config.evals), 'NAME')}/main_score, or another score"
        )
    if not config.eval_every:
        raise ValueError(
            f"keep_best is {config.keep_best!r}, but eval_every is 0: set it to the "
            "number of steps between evaluations"
        )


def check_lengths(config, encoder: EncoderConfig, tokenizer: Tokenizer) -> None:
    """Raises ValueError if the texts or the vocabulary exceed the encoder's tables."""
    if config.max_length > encoder.max_len:
        raise ValueError(
            f"max_length {config.max_length} is beyond the encoder's {encoder.max_len} "
            "positions (encoder.max_len)"
        )
    if num_token_ids(tokenizer) > encoder.vocab_size:
        raise ValueError(
            f"the tokenizer has {num_token_ids(tokenizer)} tokens, the encoder's "
            f"table only {encoder.vocab_size} (encoder.vocab_size)"
        )


def check_eval_sizes(config, encoder: EncoderConfig) -> list[tuple[int, int]]:
    """The (depth, dim) that evaluators score besides the full size.

    Raises:
        ValueError: The model has no such size.
    """
    sizes = [(int(depth), int(dim)) for depth, dim in config.eval_sizes]
    width = embedding_width(config, encoder)
    try:
        check_pairs(sizes, encoder.depth, width)
    except ValueError as error:
        raise ValueError(f"eval_sizes: {error}") from None
    return sizes
