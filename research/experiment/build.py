"""Builds an Experiment from a config; no other module reads a whole config."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh
from tokenizers import Tokenizer

from research import sharding
from research.config_sections import bind, format_call
from research.config_sections import build as build_section
from research.data.columns import drop_examples
from research.data.document_cache import tokenizer_info
from research.data.pairs.clusters import hash_arrays
from research.data.pairs.pair_batches import PairBatches, make_pair_batches
from research.data.pairs.refreshed_negatives import RefreshedNegatives
from research.data.pretraining_batches import (
    PretrainingBatches,
    make_pretraining_batches,
)
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import Source
from research.eval.evaluators import EVALS
from research.experiment.config_keys import (
    check_eval_sizes,
    check_keys,
    check_lengths,
)
from research.experiment.data_summary import summarize_pairs
from research.experiment.evaluation import (
    make_embedder,
    make_local_embedder,
    measure_model,
    measure_sizes,
)
from research.experiment.initialization import (
    ENCODERS,
    inherit_prompts,
    load_initialization,
    make_initialize,
    make_prompt,
    make_tokenizer,
)
from research.experiment.mining import MINING, list_negative_files, make_refresh
from research.experiment.model_card import (
    find_projection,
    list_adapters,
    make_model_card,
    trained_width,
)
from research.experiment.source_checks import (
    NamedLosses,
    build_losses,
    build_sources,
    check_classes,
    check_sources,
    describe_sources,
)
from research.experiment.teachers import TEACHERS, RunTeacher, read_text_vectors
from research.inference.settings import apply_prompt
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.source_losses import select_source_loss
from research.models.config import EncoderConfig
from research.models.pooling import basic, registry
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.learned import TableMethod
from research.models.positions.methods import (
    extend_config,
    read_methods,
)
from research.objectives.gradcache import count_min_chunks
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING
from research.text.templates import Prompt
from research.train.averaging import AVERAGES
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
    negatives: Path | None = None,
    tokenizer: Tokenizer | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Builds everything that the training loop needs; writes only the token cache.

    Args:
        config: Config with every top-level key of `config_keys`, as configs/common.py
            makes it.
        cache: Folder of tokenized texts.
        negatives: Folder of the hard negatives that the run mines; None takes random
            ones for them, for a run of which only the cost is of interest.
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

    sources = build_sources(config.data)
    if tokenizer is None:
        tokenizer = make_tokenizer(config.tokenizer, sources)
    prompt = make_prompt(config)

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
    # Batches and objective, with a teacher of both
    mining = build_section(MINING, config.mining) if "mining" in config else None
    files = list_negative_files(mining, list(sources), negatives)
    teacher = None
    if "teacher" in config:
        teacher = build_section(TEACHERS, config.teacher, config.max_length)
    batches = _build_batches(
        config, sources, tokenizer, mesh, cache, prompt, teacher, files
    )
    hashes = {name: source.content_hash for name, source in sources.items()}
    if teacher and teacher.content_hash:
        hashes["config.teacher"] = teacher.content_hash
    notes = describe_sources(sources)
    losses = build_losses(config, sources)
    if losses:
        notes = summarize_pairs(batches, tokenizer, config.max_length)
        width = trained_width(config, encoder)
        # Clusters, which come from vectors, are a part of the data
        for state in batches.sources:
            if state.clusters is not None:
                hashes[state.name] += hash_arrays(state.clusters)
        # A classifier takes the scores as classes, and no loss
        if "classes" in config.objective:
            check_classes(batches, sources, config)
            notes += describe_sources(sources)
        else:
            notes += check_sources(
                *(batches, sources, losses, width, teacher),
                projection=find_projection(config),
                stored=config.objective.get("stored", False),
            )
        if teacher and teacher.note:
            notes += (teacher.note,)
    training = _training_encoder(config, encoder)
    objective = _build_objective(config, training, tokenizer, batches, losses)
    has_frozen_model = bool(teacher and teacher.wrap)
    if has_frozen_model:
        objective = teacher.wrap(objective, config.objective.micro_batch)
    initialize = make_initialize(
        objective,
        base_encoder,
        config.position_methods,
        initialization,
        on_host=has_frozen_model,
    )

    # How the trained model embeds, and its evaluators
    card = make_model_card(config, base_encoder, encoder, sources, initialization)
    local_mesh = sharding.local_mesh(mesh)
    embedder_parts = encoder, tokenizer, prompt, local_mesh, card
    make_run_embedder = partial(make_embedder, *embedder_parts)
    # What mines the hard negatives of the next steps
    refresh = None
    if mining and negatives:
        embedder = partial(make_local_embedder, *embedder_parts)
        refresh = make_refresh(mining, batches, embedder, config.similarity)
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
        tx=build_section(OPTIMIZERS, config.optimizer, config.steps)._replace(
            average=build_section(AVERAGES, config.averaging, config.steps)
        ),
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
        refresh=refresh,
        initialize=initialize,
        note=initialization.note if initialization else "",
        data_notes=notes,
        data_hashes=hashes,
        is_mixture=len(sources) > 1,
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


def _build_batches(
    config,
    sources: Mapping[str, Source],
    tokenizer: Tokenizer,
    mesh: Mesh,
    cache: Path,
    prompt: Prompt | None,
    teacher: RunTeacher | None,
    refreshed: Mapping[str, RefreshedNegatives],
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
    adapters = list_adapters(config)
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
        refreshed=refreshed,
        data_exponent=config.data_exponent,
        cluster_vectors={
            name: tuple(map(read_text_vectors, source.clusters))
            for name, source in sources.items()
        },
        steps=config.steps,
        teacher=teacher and teacher.teacher,
        **shared,
    )


def _build_objective(
    config, encoder: EncoderConfig, tokenizer: Tokenizer, batches, losses: NamedLosses
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
        # Contrastive objectives take a pooling and a loss over sizes, for each source
        size_losses = {
            text: build_section(SIZE_LOSSES, config.size_loss, loss)
            for text, (_, loss) in losses.items()
        }
        size_loss = select_source_loss(size_losses)
        objective = build_section(
            OBJECTIVES, config.objective, encoder, pool, size_loss
        )
    # LoRA and BitFit wrap the objective
    return build_section(TUNING, config.tuning, objective)
