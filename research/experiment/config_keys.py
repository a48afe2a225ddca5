"""Which top-level keys a config may have, and their checks."""

from tokenizers import Tokenizer

from research.models.config import EncoderConfig
from research.objectives.registry import OBJECTIVES, PRETRAINING, check_rows

KEYS = (
    *("seed", "steps", "batch_size", "max_length", "tokenizer", "encoder"),
    *("init_from", "position_methods", "prompt", "pool", "objective", "tuning", "data"),
    *("optimizer", "mesh", "evals", "log_every", "save_every", "eval_every"),
)


def keys(objective: str) -> tuple[str, ...]:
    """The top-level keys of the configs of an objective."""
    return (
        *KEYS,
        *(
            ("row_layout",)
            if objective in PRETRAINING
            else ("loss", "size_loss", "similarity")
        ),
    )


def _check_keys(config) -> None:
    objectives = [*OBJECTIVES, *PRETRAINING]
    name = config.objective.name if "objective" in config else objectives[0]
    if name not in objectives:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(objectives)}")
    known = keys(name)
    unknown, missing = (
        sorted(set(config) - set(known)),
        sorted(set(known) - set(config)),
    )
    if unknown or missing:
        what = "unknown" if unknown else "missing"
        raise ValueError(
            f"{what} config key {', '.join(unknown or missing)}; "
            f"the keys of {name} are {', '.join(known)}"
        )
    for name in ("steps", "batch_size", "max_length", "log_every"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; it should be at least 1")
    if not config.data:
        raise ValueError("the config names no data")
    if "row_layout" in config:
        check_rows(config.objective, config.row_layout)


def _check_lengths(config, cfg: EncoderConfig, tokenizer: Tokenizer) -> None:
    if config.max_length > cfg.max_len:
        raise ValueError(
            f"max_length {config.max_length} is beyond the encoder's {cfg.max_len} "
            "positions (encoder.max_len)"
        )
    if tokenizer.get_vocab_size() > cfg.vocab_size:
        raise ValueError(
            f"the tokeniser has {tokenizer.get_vocab_size()} tokens, the encoder's "
            f"table only {cfg.vocab_size} (encoder.vocab_size)"
        )
