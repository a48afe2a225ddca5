"""Initial parameters and tokenizer of a run: new, or from an existing model."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from research.config_sections import build, diff_configs
from research.data.sources import Source
from research.inference.model import EmbeddingModel
from research.interop import load
from research.models import config, encoder
from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling
from research.models.pooling.registry import parse_pooling
from research.models.positions.learned import TableMethod
from research.models.positions.methods import (
    config_fields,
    extend_context,
    read_methods,
)
from research.text import tokenization
from research.text.prompts import build_prompt
from research.text.templates import Prompt
from research.types import Key, Objective, Params, Pool

# Approximate number of examples per source that a tokenizer is trained on.
TOKENIZER_EXAMPLES = 10_000


class Initialization(NamedTuple):
    """The parameters that a run takes from a model.

    Attributes:
        params: Parameters of the encoder, and "head" for a pooling that has one.
        note: Sentence about parts of the model that the run keeps or drops, and a
            changed attention mask; empty if there are none.
        prompts: Prefix of the texts for each role, and others that the model names.
        special_tokens: As in `EmbeddingModel`.
        default_prompt: Name of the prompt for texts without a role; "" without one.
    """

    params: Params
    note: str
    prompts: Mapping[str, str]
    special_tokens: Mapping[str, str]
    default_prompt: str = ""


def load_initialization(
    model: str,
    cfg: EncoderConfig,
    tokenizer: Tokenizer,
    pool: str = "mean",
    prompt: Prompt | None = None,
) -> Initialization:
    """Loads the encoder of a model to start a run from, such as a pre-training run.

    Args:
        model: Name of the model, as `interop.load` takes it.
        cfg: Shape of the run's encoder. It may have fewer blocks than the model (the
            first blocks are used) and another causal mask; all else must be equal.
        tokenizer: Tokenizer of the run.
        pool: Pooling of the run, as `parse_pooling` reads it.
        prompt: Templates of the run, which replace the prompts of the model; None keeps
            these.

    Raises:
        ValueError: The model has another shape, another vocabulary, or adapters.
    """
    # With the output layer of a language model, for the objectives that train one
    loaded = load.load(model, lm_head=True)
    # Merged models have no adapters
    if loaded.adapters:
        raise ValueError(
            f"{model} has the adapters {', '.join(loaded.adapters)}; a run starts from "
            "a model without, such as the export of one of them"
        )
    # The first blocks of the model
    params, shape = encoder.truncate_depth(
        loaded.params, loaded.config, min(cfg.depth, loaded.config.depth)
    )

    # Fields that change how the encoder is computed, but not what its weights mean
    free = ("dropout", "attention_dropout", "dtype", "remat", "unroll", "attention")
    free += ("causal", "unattended_id")
    changes = {name: getattr(cfg, name) for name in free}
    if dataclasses.replace(shape, **changes) != cfg:
        lines = diff_configs(config_fields(shape), config_fields(cfg))
        raise ValueError(
            f"the encoder of {model} is not the config's: {'; '.join(lines)}"
        )
    # Token ids must mean the same tokens
    if loaded.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer is not that of {model}, whose weights the run starts from; "
            "tokenizer.name should be 'pretrained', tokenizer.model the same model"
        )

    params, parts, dropped = _select_parts(loaded, params, parse_pooling(pool))
    # Report what was dropped or changed
    notes = []
    if dropped:
        notes.append(f"its {parts} kept, {' and '.join(dropped)} dropped")
    if shape.causal != cfg.causal:
        notes.append(MASK_NOTES[cfg.causal])
    prompts = loaded.prompts if prompt is None else {}
    notes += _describe_prompts(loaded, prompt)
    note = f"{model}: {'; '.join(notes)}" if notes else ""
    default = loaded.default_prompt if prompt is None else ""
    return Initialization(params, note, prompts, loaded.special_tokens, default)


def _describe_prompts(loaded: EmbeddingModel, prompt: Prompt | None) -> list[str]:
    """Notes on prompts and templates of a model that a run keeps or drops."""
    notes = []
    prefixes = [f"{r} {p!r}" for r, p in sorted(loaded.prompts.items()) if p]
    if prefixes:
        action = "kept" if prompt is None else "replaced by the templates of the config"
        notes.append(f"its prompts ({', '.join(prefixes)}) are {action}")
    if loaded.prompt not in (None, prompt):
        notes.append("its prompt templates are dropped (config.prompt)")
    return notes


def inherit_prompts(
    sources: Mapping[str, Source], initialization: Initialization | None
) -> dict[str, Source]:
    """The sources, with the initial model's prompts for roles without their own."""
    prompts = initialization.prompts if initialization else {}
    roles = {role: prompts.get(role, "") for role in ("query", "document")}
    return {
        name: dataclasses.replace(source, prompts={**roles, **source.prompts})
        for name, source in sources.items()
    }


def combine_prompts(
    sources: Mapping[str, Source], initialization: Initialization | None
) -> dict[str, str]:
    """The prompts of a trained model.

    Args:
        sources: Sources with prompts for both roles. If they differ from each other,
            the trained model has none.
        initialization: What the run takes from a model, whose prompts by other names
            than the roles stay.
    """
    prompts = initialization.prompts if initialization else {}
    first, *others = [dict(source.prompts) for source in sources.values()]
    is_shared = all(other == first for other in others)
    return {**prompts, **(first if is_shared else {"query": "", "document": ""})}


def _select_parts(
    loaded: EmbeddingModel, params: Params, pool: Pool | LearnedPooling
) -> tuple[Params, str, list[str]]:
    """Parameters for a run with this pooling, their names, and names of dropped parts.

    A learned pooling starts from the model's pooling parameters if it has any, or from
    its language model head.
    """
    learned = isinstance(pool, LearnedPooling)
    parts, dropped = "encoder is", list(loaded.dropped)
    # Keep the head for a pooling that reuses it
    takes_head = learned and pool.reuses_head and "pooling" not in params
    if takes_head and loaded.head is not None:
        params, parts = {**params, "head": loaded.head}, "encoder and head are"
        dropped = [name for name in dropped if not name.startswith("head ")]
    # Drop the parameters of a learned pooling that the run does not use
    if "pooling" in params and not learned:
        params = {name: part for name, part in params.items() if name != "pooling"}
        dropped.append(f"its pooling by {loaded.pool}")
    if loaded.dense:
        dropped.append("its dense layers")
    if loaded.transform is not None:
        dropped.append(f"its transform {loaded.transform.text}")
    return params, parts, dropped


def make_initialize(
    objective: Objective,
    cfg: EncoderConfig,
    position_methods: str,
    initialization: Initialization | None,
    *,
    on_host: bool = False,
) -> Callable[[Key], tuple[Params, Params]] | None:
    """Makes key -> (trained, frozen) parameters; None if `objective.init` suffices.

    Args:
        objective: Objective of the run.
        cfg: Shape of the encoder before its context is extended.
        position_methods: Position methods that extend the context, as call text.
        initialization: Initial parameters of the encoder; None for random ones.
        on_host: Whether `objective.init` should not be compiled, because it returns
            loaded parameters: those of a teacher.
    """
    methods = read_methods(position_methods)
    longer_table = any(isinstance(method, TableMethod) for method in methods)
    # `objective.init` can make random parameters
    if initialization is None and not longer_table and not on_host:
        return None

    def initialize(key: Key) -> tuple[Params, Params]:
        if initialization is None:
            params = encoder.init(key, cfg)
        else:
            params = initialization.params
        # Extend the context, then add the parameters of the objective
        return objective.init(key, extend_context(params, cfg, methods)[0])

    return initialize


def make_prompt(config) -> Prompt | None:
    """The prompt that texts are formatted with; None for plain texts.

    Raises:
        ValueError: There is no such prompt, or it needs another pooling than the
            config's.
    """
    prompt = build_prompt(config.prompt)
    if prompt and prompt.pool not in (None, config.pool.name):
        raise ValueError(
            f"prompt {config.prompt.name} pools by {prompt.pool!r} and the config by "
            f"{config.pool.name!r}: set pool.name={prompt.pool}, or prompt.pool="
            f"{config.pool.name}"
        )
    return prompt


def make_tokenizer(
    config: Mapping[str, Any], sources: Mapping[str, Source]
) -> Tokenizer:
    """Builds the tokenizer of a config section; "trained" is trained on the sources.

    Args:
        config: Config section that names one of TOKENIZERS.
        sources: Training data by name.
    """

    def iterate_texts() -> Iterator[str]:
        for source in sources.values():
            # Evenly spaced examples suffice for the statistics of words.
            step = -(-len(source.examples) // TOKENIZER_EXAMPLES)
            for row in source.examples[::step]:
                # Each text of an example once
                yield from dict.fromkeys((row.query, *row.positives, *row.negatives))

    return build(TOKENIZERS, config, iterate_texts)


def trained_tokenizer(
    corpus: Callable[[], Iterable[str]], *, vocab: int = 8_192, kind: str = "wordpiece"
) -> Tokenizer:
    """Trains a tokenizer of at most `vocab` tokens on the texts of the run."""
    return tokenization.train_tokenizer(corpus(), vocab, kind)


def pretrained_tokenizer(
    corpus: Callable[[], Iterable[str]], *, model: str
) -> Tokenizer:
    """The tokenizer of an existing model."""
    del corpus
    return load.load(model, weights=False).tokenizer


def pretrained_encoder(
    *,
    model: str,
    depth: int = -1,
    causal: bool | None = None,
    dropout: float = 0.1,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    remat: str = "dots",
    unroll: bool = False,
) -> EncoderConfig:
    """The shape of an existing model's encoder, or of its first `depth` blocks.

    Args:
        model: Name of the model, as `interop.load` takes it.
        depth: Number of blocks; -1 for all.
        causal: Whether attention is causal; False makes a decoder bidirectional
            (LLM2Vec), None keeps the model's mask.
        dropout: Dropout rate in training.
        attention_dropout: Dropout rate of attention weights in training; None keeps the
            model's, or `dropout` if it has none of its own.
        dtype: Data type of activations.
        remat: What the backward pass recomputes, as in `EncoderConfig`.
        unroll: Whether blocks are compiled one by one, as in `EncoderConfig`.
    """
    cfg = load.load(model, weights=False).config
    if not (depth == -1 or 1 <= depth <= cfg.depth):
        raise ValueError(f"depth {depth} is not in 1 ... {cfg.depth} of {model}")
    # The model's shape, with the settings of this training
    return dataclasses.replace(
        cfg,
        depth=cfg.depth if depth == -1 else depth,
        causal=cfg.causal if causal is None else causal,
        dropout=dropout,
        attention_dropout=(
            cfg.attention_dropout if attention_dropout is None else attention_dropout
        ),
        dtype=dtype,
        remat=remat,
        unroll=unroll,
    )


MASK_NOTES = {
    False: "its attention was causal, here it is bidirectional",
    True: "its attention was bidirectional, here it is causal",
}

# Functions that a config section `tokenizer` or `encoder` can name.
TOKENIZERS = {"trained": trained_tokenizer, "pretrained": pretrained_tokenizer}
ENCODERS = {**config.ENCODERS, "pretrained": pretrained_encoder}
