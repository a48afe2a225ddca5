"""The parameters that a run starts from: random ones, or those of a model."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from research.config_sections import diff_configs
from research.inference import model as pretrained
from research.interop import load
from research.models import config, encoder
from research.models.config import EncoderConfig
from research.models.pooling import registry
from research.models.pooling.basic import LearnedPooling
from research.models.positions.learned import TableMethod
from research.models.positions.methods import (
    config_fields,
    extend_context,
    read_methods,
)
from research.text import tokenization
from research.types import Key, Objective, Params, Pool


class Taken(NamedTuple):
    """What is taken from a model.

    Attributes:
        params: its encoder's parameters, and its "head" for a pooling that reads it.
        note: what else was trained there and is left behind, and whether its tokens saw
            another part of their text; in a sentence.
    """

    params: Params
    note: str


def taken(
    model: str, cfg: EncoderConfig, tokenizer: Tokenizer, pool: str = "mean"
) -> Taken:
    """The encoder of a model, such as the workdir of a pre-training.

    Args:
        model: its name, as `pretrained.load` takes it.
        cfg: the shape that it should have, but for the causal mask, which a run may
            add or take away; of a deeper encoder the first blocks.
        tokenizer: the run's.
        pool: the run's, as `parse_pooling` reads it.

    Raises:
        ValueError: it has another shape, or other token ids.
    """
    loaded = load.load(model)
    if loaded.adapters:
        raise ValueError(
            f"{model} has the adapters {', '.join(loaded.adapters)}; a run starts from "
            "a model without, such as the export of one of them"
        )
    params, shape = encoder.truncate_depth(
        loaded.params, loaded.config, min(cfg.depth, loaded.config.depth)
    )
    free = ("dropout", "dtype", "remat", "attention", "causal")
    free = {name: getattr(cfg, name) for name in free}
    if dataclasses.replace(shape, **free) != cfg:
        lines = diff_configs(config_fields(shape), config_fields(cfg))
        raise ValueError(
            f"the encoder of {model} is not the config's: {'; '.join(lines)}"
        )
    if loaded.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer is not that of {model}, whose weights the run starts from; "
            "tokenizer.name should be 'pretrained', tokenizer.model the same model"
        )
    params, kept, dropped = _parts(loaded, params, registry.parse_pooling(pool))
    said = []
    if dropped:
        said.append(f"its {kept} kept, {' and '.join(dropped)} dropped")
    if shape.causal != cfg.causal:
        said.append(SWITCHED[cfg.causal])
    return Taken(params, f"{model}: {'; '.join(said)}" if said else "")


def _parts(
    loaded: pretrained.EmbeddingModel, params: Params, pool: Pool | LearnedPooling
) -> tuple[Params, str, list[str]]:
    """What a run with such a pooling takes; what that is, and what it leaves behind."""
    wanted = isinstance(pool, LearnedPooling)
    kept, dropped = "encoder is", list(loaded.dropped)
    if (
        wanted
        and pool.reuses_head
        and loaded.head is not None
        and "readout" not in params
    ):
        params, kept = {**params, "head": loaded.head}, "encoder and head are"
        dropped = [name for name in dropped if not name.startswith("head ")]
    if "readout" in params and not wanted:
        params = {name: part for name, part in params.items() if name != "readout"}
        dropped.append(f"its pooling by {loaded.pool}")
    return params, kept, dropped


def initialiser(
    objective: Objective,
    cfg: EncoderConfig,
    methods: str,
    start: Taken | None,
) -> Callable[[Key], tuple[Params, Params]] | None:
    """The run's first parameters, extended; None where they are the objective's own.

    Args:
        objective: of the run.
        cfg: the encoder's shape before it is extended.
        methods: call text of the position methods that extend its context.
        start: the encoder; None for a random one.
    """
    tables = any(isinstance(m, TableMethod) for m in read_methods(methods))
    if start is None and not tables:
        return None

    def initialise(key: Key) -> tuple[Params, Params]:
        params = encoder.init(key, cfg) if start is None else start.params
        return objective.init(key, extend_context(params, cfg, methods)[0])

    return initialise


def trained_tokenizer(
    corpus: Callable[[], Iterable[str]], *, vocab: int = 8_192, kind: str = "wordpiece"
) -> Tokenizer:
    """A tokeniser of at most `vocab` tokens, trained on the run's own texts."""
    return tokenization.train_tokenizer(corpus(), vocab, kind)


def pretrained_tokenizer(
    corpus: Callable[[], Iterable[str]], *, model: str
) -> Tokenizer:
    """The tokeniser of a model."""
    del corpus
    return load.load(model).tokenizer


def pretrained_encoder(
    *,
    model: str,
    depth: int = -1,
    causal: bool | None = None,
    dropout: float = 0.1,
    dtype: str = "float32",
    remat: str = "dots",
) -> EncoderConfig:
    """The shape of a model's encoder, or of its first `depth` blocks.

    `causal` sets its mask, such as False to make a decoder see both sides (LLM2Vec);
    None leaves it.
    """
    cfg = load.load(model).config
    if not (depth == -1 or 1 <= depth <= cfg.depth):
        raise ValueError(f"depth {depth} is not in 1 ... {cfg.depth} of {model}")
    return dataclasses.replace(
        cfg,
        depth=cfg.depth if depth == -1 else depth,
        causal=cfg.causal if causal is None else causal,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
    )


SWITCHED = {
    False: "its tokens saw only what stands before them, here they see both sides",
    True: "its tokens saw both sides, here they see only what stands before them",
}

TOKENIZERS = {"trained": trained_tokenizer, "pretrained": pretrained_tokenizer}
ENCODERS = {**config.ENCODERS, "pretrained": pretrained_encoder}
