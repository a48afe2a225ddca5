"""From a config to the built parts of a run: the only module that reads a config."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import ml_collections

from research import sharding
from research.atomic_write import write_json
from research.config_sections import bind, build
from research.data.document_cache import tokenizer_info
from research.data.pair_batches import PairBatches, make_pair_batches
from research.data.pretraining_batches import (
    PretrainingBatches,
    make_pretraining_batches,
)
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES, Source
from research.eval.evaluators import EVALS
from research.experiment.config_keys import _check_keys, _check_lengths
from research.experiment.initialization import ENCODERS, initialiser, taken
from research.experiment.workdir import _tokenizer, claim
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.models.config import EncoderConfig
from research.models.lora import full_params
from research.models.pooling import basic, registry
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.learned import TableMethod
from research.models.positions.methods import (
    config_fields,
    extend_config,
    read_methods,
)
from research.objectives.gradcache import num_chunks
from research.objectives.registry import OBJECTIVES, PRETRAINING
from research.objectives.tuning import TUNING, is_partial
from research.text.prompts import build_prompt
from research.text.templates import Prompt
from research.train.loop import Experiment
from research.train.optimizers import OPTIMIZERS
from research.types import ModelEvaluator, Objective, Params


def make_experiment(
    config: ml_collections.ConfigDict, workdir: Path, *, cache: Path | None = None
) -> Experiment:
    """The parts that the one loop runs.

    Writes what a later load of the workdir needs: config.json, tokenizer.json and
    model.json.

    Args:
        config: every top-level key of `keys`, as configs/common.py makes them.
        workdir: the run's folder.
        cache: where pre-tokenised texts are kept; workdir/tokens unless given.

    Raises:
        ValueError: the config is not one, or does not fit its data, model or devices,
            or the workdir holds a run of another config.
    """
    _check_keys(config)
    claim(workdir, config)
    mesh_shape = dict(config.mesh)
    fsdp = mesh_shape.pop("fsdp")
    mesh = sharding.make_mesh(mesh_shape)
    sources = {name: build(SOURCES, part) for name, part in config.data.items()}
    tokenizer = _tokenizer(config, sources, workdir)
    shape = build(ENCODERS, config.encoder)
    cfg = extend_config(shape, config.position_methods)
    _check_lengths(config, cfg, tokenizer)
    method = _method(config)
    cache = cache or workdir / "tokens"
    batches = _batches(config, sources, tokenizer, mesh, cache, method)
    training = _training(config, shape, cfg)
    objective = _objective(config, training, tokenizer, batches)
    pool = registry.format_pooling(config.pool)
    start = None
    if config.init_from:
        start = taken(config.init_from, shape, tokenizer, pool)
    longest = cfg.max_len if cfg.max_len > shape.max_len else config.max_length
    model = {
        "encoder": config_fields(cfg),
        "pool": pool,
        "max_length": longest,
        "prompts": _prompts(sources),
        "method": config.prompt.to_dict(),
        "normalize": config.get("similarity", "cosine") == "cosine",
        "dims": _dims(config),
        "partial": is_partial(config.tuning.name),
        "adapters": _adapters(config),
        "base": config.init_from,
    }
    write_json(workdir / "model.json", model)
    evaluators = {name: build(EVALS, part) for name, part in config.evals.items()}

    def measured(measure, params: Params, frozen: Params):
        own = full_params(params, frozen)["encoder"]
        return measure(own, cfg, tokenizer, longest, mesh)

    def embedder(params: Params, frozen: Params):
        trained = EmbeddingModel(
            params=full_params(params, frozen)["encoder"],
            config=cfg,
            tokenizer=tokenizer,
            pool=pool,
            max_length=longest,
            prompts=model["prompts"],
            normalize=model["normalize"],
            prompt=method,
            adapters=tuple(model["adapters"]),
        )
        return Embedder(trained, mesh=mesh)

    return Experiment(
        objective=objective,
        tx=build(OPTIMIZERS, config.optimizer, config.steps),
        batches=batches,
        mesh=mesh,
        steps=config.steps,
        seed=config.seed,
        fsdp=fsdp,
        log_every=config.log_every,
        save_every=config.save_every,
        eval_every=config.eval_every,
        evaluators={
            name: evaluator
            for name, evaluator in evaluators.items()
            if not isinstance(evaluator, ModelEvaluator)
        },
        make_embedder=embedder,
        measures={
            name: partial(measured, evaluator.evaluate)
            for name, evaluator in evaluators.items()
            if isinstance(evaluator, ModelEvaluator)
        },
        initialise=initialiser(objective, shape, config.position_methods, start),
        note=start.note if start else "",
    )


def _training(config, shape: EncoderConfig, cfg: EncoderConfig) -> EncoderConfig:
    """The extension `cfg` of a shape as it is trained.

    Texts begin anywhere in a longer position table, so that all its rows are trained.
    """
    methods = read_methods(config.position_methods)
    if not any(isinstance(method, TableMethod) for method in methods):
        return cfg
    return dataclasses.replace(cfg, random_offset=cfg.max_len - config.max_length)


def _method(config) -> Prompt | None:
    """The method that texts are put by, None for plain, and its pooling the config's.

    Raises:
        ValueError: there is no such method, or the config pools otherwise.
    """
    method = build_prompt(config.prompt)
    if method and method.pool not in (None, config.pool.name):
        raise ValueError(
            f"prompt {config.prompt.name} pools by {method.pool!r} and the config by "
            f"{config.pool.name!r}: set pool.name={method.pool}, or prompt.pool="
            f"{config.pool.name}"
        )
    return method


def _batches(
    config, sources, tokenizer, mesh, cache: Path, method: Prompt | None
) -> PairBatches | PretrainingBatches:
    import jax

    shape = {
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "seed": config.seed,
        "cache": cache,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    multiple = mesh.shape["data"]
    if "row_layout" in config:
        layout = bind(ROW_LAYOUTS, config.row_layout)
        return make_pretraining_batches(
            sources, tokenizer, layout, row_multiple=multiple, **shape
        )
    multiple *= num_chunks(config.batch_size, config.objective.micro_batch)
    length = config.max_length
    shape |= {"row_length": length, "row_multiple": multiple, "prompt": method}
    names = _adapters(config)
    if len(names) > 1:
        shape["adapters"] = names
    return make_pair_batches(sources, tokenizer, **shape)


def _objective(config, cfg: EncoderConfig, tokenizer, batches) -> Objective:
    pool = registry.parse_pooling(registry.format_pooling(config.pool))
    if "row_layout" in config:
        if isinstance(pool, basic.LearnedPooling):
            raise ValueError(
                f"pool {config.pool.name} has parameters, which "
                f"{config.objective.name} does not train; allowed: {', '.join(BASIC_POOLINGS)}"
            )
        info = tokenizer_info(tokenizer, [part.table for part in batches.sources])
        return build(
            TUNING, config.tuning, build(PRETRAINING, config.objective, cfg, info)
        )
    loss = build_loss(config.loss, config.similarity)
    size_loss = build(SIZE_LOSSES, config.size_loss, loss)
    objective = build(OBJECTIVES, config.objective, cfg, pool, size_loss)
    return build(TUNING, config.tuning, objective)


def _adapters(config) -> list[str]:
    """The names of the adapters that are trained, in their order; none without."""
    names = list(config.tuning.get("adapters", ()))
    if len(names) > 1 and "row_layout" in config:
        raise ValueError(
            f"tuning.adapters names {', '.join(names)}, but {config.objective.name} "
            "reads rows of text, which go through one adapter"
        )
    return names


def _prompts(sources: Mapping[str, Source]) -> dict[str, str]:
    """The sources' prompts where all agree, else none."""
    prompts = [dict(source.prompts) for source in sources.values()]
    if all(p == prompts[0] for p in prompts):
        return prompts[0]
    return {"query": "", "document": ""}


def _dims(config) -> list[int]:
    """The widths that the loss trains, in descending order."""
    sizes = config.objective if "row_layout" in config else config.size_loss
    widths = {int(dim) for _, dim in sizes.get("pairs", ())}
    return sorted(widths | set(sizes.get("dims", ())), reverse=True)
