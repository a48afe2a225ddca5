"""Builds an Experiment from a config; no other module reads a whole config."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh
from tokenizers import Tokenizer

from research import sharding
from research.config_sections import bind, format_call
from research.config_sections import build as build_section
from research.data.columns import drop_examples
from research.data.document_cache import tokenizer_info
from research.data.pair_batches import PairBatches, make_pair_batches
from research.data.pretraining_batches import (
    PretrainingBatches,
    make_pretraining_batches,
)
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES, Source
from research.eval.evaluators import EVALS
from research.experiment.config_keys import (
    check_eval_sizes,
    check_keys,
    check_lengths,
)
from research.experiment.data_summary import summarize_pairs
from research.experiment.evaluation import (
    make_embedder,
    measure_model,
    measure_sizes,
)
from research.experiment.initialization import (
    ENCODERS,
    Initialization,
    combine_prompts,
    inherit_prompts,
    load_initialization,
    make_initialize,
    make_tokenizer,
)
from research.experiment.source_checks import check_sources, describe_sources
from research.inference.settings import apply_prompt, check_kind_similarity
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.models.config import EncoderConfig
from research.models.pooling import basic, registry
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.learned import TableMethod
from research.models.positions.methods import (
    config_fields,
    extend_config,
    read_methods,
)
from research.objectives.gradcache import count_min_chunks
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING, is_partial
from research.text.prompts import build_prompt
from research.text.templates import Prompt
from research.train.experiment import Experiment
from research.train.optimizers import OPTIMIZERS
from research.types import ModelEvaluator, Objective

# Rows of a batch have at most so many tokens, unless a text is longer.
MAX_ROW_LENGTH = 512
# Default folder of tokenized texts, shared by runs.
TOKEN_CACHE = Path("~/.cache/embax/tokens").expanduser()


def build(
    config: ml_collections.ConfigDict,
    *,
    cache: Path = TOKEN_CACHE,
    tokenizer: Tokenizer | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Builds everything that the training loop needs; writes only the token cache.

    Args:
        config: Config with every top-level key of `config_keys`, as configs/common.py
            makes it.
        cache: Folder of tokenized texts.
        tokenizer: Tokenizer of the run; None builds it from the config.
        devices: Devices of the run; None for all of all processes. Others, such as
            those of a TPU slice that is not at hand, are compiled for.

    Returns:
        The experiment, including its tokenizer and model card.

    Raises:
        ValueError: A key is missing or unknown, or the config does not fit its data,
            its model or the devices.
    """
    check_keys(config)
    mesh = sharding.make_mesh(config.mesh.to_dict(), devices)

    # Texts: sources, tokenizer, prompt
    sources = {name: build_section(SOURCES, part) for name, part in config.data.items()}
    if tokenizer is None:
        tokenizer = make_tokenizer(config.tokenizer, sources)
    prompt = _build_prompt(config)

    # The encoder, before and after its context is extended
    base_encoder = build_section(ENCODERS, config.encoder)
    encoder = extend_config(base_encoder, config.position_methods)
    encoder = apply_prompt(encoder, prompt, tokenizer)
    check_lengths(config, encoder, tokenizer)

    # Initial parameters, and the prompts of the model they come from
    initialization = None
    if config.init_from:
        pool = format_call(config.pool)
        initialization = load_initialization(
            config.init_from, base_encoder, tokenizer, pool, prompt
        )
    sources = inherit_prompts(sources, initialization)
    # Batches and objective
    batches = _build_batches(config, sources, tokenizer, mesh, cache, prompt)
    notes = describe_sources(sources)
    if "loss" in config:
        check_kind_similarity(format_call(config.pool), config.similarity)
        loss = build_loss(config.loss, config.similarity)
        notes = summarize_pairs(batches, tokenizer, config.max_length)
        notes += check_sources(batches, sources, config.loss.name, loss)
    training = _training_encoder(config, encoder)
    objective = _build_objective(config, training, tokenizer, batches)
    initialize = make_initialize(
        objective, base_encoder, config.position_methods, initialization
    )

    # How the trained model embeds, and its evaluators
    card = _model_card(config, base_encoder, encoder, sources, initialization)
    local_mesh = sharding.local_mesh(mesh)
    make_run_embedder = partial(
        make_embedder, encoder, tokenizer, prompt, local_mesh, card
    )
    evaluators = {name: build_section(EVALS, p) for name, p in config.evals.items()}
    # Those that need more than an EmbedFn: the encoder, or several sizes
    measures = {
        name: partial(measure_model, evaluator, encoder, tokenizer, card, local_mesh)
        for name, evaluator in evaluators.items()
        if isinstance(evaluator, ModelEvaluator)
    }
    if sizes := check_eval_sizes(config, encoder):
        measures |= {
            name: partial(
                measure_sizes, evaluator, sizes, make_run_embedder, encoder, card
            )
            for name, evaluator in evaluators.items()
            if name not in measures
        }
    drop_examples()  # they are tokenized now
    return Experiment(
        objective=objective,
        tx=build_section(OPTIMIZERS, config.optimizer, config.steps),
        batches=batches,
        mesh=mesh,
        steps=config.steps,
        seed=config.seed,
        log_every=config.log_every,
        save_every=config.save_every,
        eval_every=config.eval_every,
        keep=config.keep,
        keep_every=config.keep_every,
        keep_best=config.keep_best,
        patience=config.patience,
        evaluators={
            name: evaluator
            for name, evaluator in evaluators.items()
            if name not in measures
        },
        make_embedder=make_run_embedder,
        measures=measures,
        initialize=initialize,
        note=initialization.note if initialization else "",
        data_notes=notes,
        data_hashes={name: source.content_hash for name, source in sources.items()},
        tokenizer=tokenizer,
        model_card=card,
    )


def _training_encoder(config, encoder: EncoderConfig) -> EncoderConfig:
    """The encoder's shape in training.

    With an extended position table, texts begin at random positions, so that all rows
    of the table are trained.
    """
    methods = read_methods(config.position_methods)
    if not any(isinstance(method, TableMethod) for method in methods):
        return encoder
    return dataclasses.replace(
        encoder, random_offset=encoder.max_len - config.max_length
    )


def _build_prompt(config) -> Prompt | None:
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


def _build_batches(
    config,
    sources: Mapping[str, Source],
    tokenizer: Tokenizer,
    mesh: Mesh,
    cache: Path,
    prompt: Prompt | None,
) -> PairBatches | PretrainingBatches:
    # Arguments of both kinds of batches
    process_index, process_count = sharding.find_process_share(mesh)
    shared = {
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "seed": config.seed,
        "cache": cache,
        "process_index": process_index,
        "process_count": process_count,
    }
    devices = sharding.count_batch_devices(mesh)
    # Pre-training reads rows of raw text
    if "row_layout" in config:
        layout = bind(ROW_LAYOUTS, config.row_layout)
        return make_pretraining_batches(
            sources, tokenizer, layout, row_multiple=devices, **shared
        )
    # With several adapters, each text is assigned to one
    adapters = _adapter_names(config)
    return make_pair_batches(
        sources,
        tokenizer,
        # Longer rows only where a text needs them
        row_length=min(config.max_length, MAX_ROW_LENGTH),
        devices=devices,
        # Each device encodes its rows in so many chunks or more (GradCache)
        min_chunks=count_min_chunks(
            config.batch_size, config.objective.micro_batch, devices
        ),
        prompt=prompt,
        adapters=adapters if len(adapters) > 1 else (),
        **shared,
    )


def _build_objective(
    config, encoder: EncoderConfig, tokenizer: Tokenizer, batches
) -> Objective:
    pool = registry.parse_pooling(format_call(config.pool))
    if "row_layout" in config:
        if isinstance(pool, basic.LearnedPooling):
            raise ValueError(
                f"pool {config.pool.name} has parameters, which "
                f"{config.objective.name} does not train; allowed: "
                f"{', '.join(BASIC_POOLINGS)}"
            )
        # Pre-training objectives take the tokenizer and its token counts
        info = tokenizer_info(tokenizer, [part.table for part in batches.sources])
        objective = build_section(OBJECTIVES, config.objective, encoder, info)
    else:
        # Contrastive objectives take a pooling and a loss over sizes
        loss = build_loss(config.loss, config.similarity)
        size_loss = build_section(SIZE_LOSSES, config.size_loss, loss)
        objective = build_section(
            OBJECTIVES, config.objective, encoder, pool, size_loss
        )
    # LoRA and BitFit wrap the objective
    return build_section(TUNING, config.tuning, objective)


def _model_card(
    config,
    base_encoder: EncoderConfig,
    encoder: EncoderConfig,
    sources: Mapping[str, Source],
    initialization: Initialization | None,
) -> dict[str, Any]:
    """The content of model.json: how the trained model embeds."""
    # A model with extended context embeds texts up to its new length
    extended = encoder.max_len > base_encoder.max_len
    return {
        "encoder": config_fields(encoder),
        "pool": format_call(config.pool),
        "max_length": encoder.max_len if extended else config.max_length,
        "prompts": combine_prompts(sources, initialization),
        "default_prompt": initialization.default_prompt if initialization else "",
        "prompt": format_call(config.prompt),
        "head": config.objective.head if _keeps_head(config) else "",
        "normalize": config.normalize,
        "similarity": config.similarity if "similarity" in config else "cosine",
        "special_tokens": dict(initialization.special_tokens) if initialization else {},
        "dims": _trained_dims(config),
        "partial": is_partial(config.tuning.name),
        "adapters": _adapter_names(config),
        "base": config.init_from,
    }


def _keeps_head(config) -> bool:
    """Whether the trained model embeds with the objective's head."""
    return "keep_head" in config.objective and config.objective.keep_head


def _adapter_names(config) -> list[str]:
    """The names of the trained adapters, in order; empty without adapters.

    Raises:
        ValueError: There are several adapters, but the objective trains on rows of text
            rather than pairs.
    """
    if "adapters" not in config.tuning:
        return []
    names = list(config.tuning.adapters)
    if len(names) > 1 and "row_layout" in config:
        raise ValueError(
            f"tuning.adapters names {', '.join(names)}, but {config.objective.name} "
            "reads rows of text, which go through one adapter"
        )
    return names


def _trained_dims(config) -> list[int]:
    """The widths that the loss trains, in descending order."""
    sizes = config.objective if "row_layout" in config else config.size_loss
    # Widths of Matryoshka losses, and of (depth, dim) pairs
    dims = set(sizes.dims) if "dims" in sizes else set()
    if "pairs" in sizes:
        dims |= {int(dim) for _, dim in sizes.pairs}
    return sorted(dims, reverse=True)
