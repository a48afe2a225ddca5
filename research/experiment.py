"""From a config to the built parts of a run: the only module that reads a config."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
from tokenizers import Tokenizer

from research import parallel, pretrained
from research.data import text
from research.data.batches import Batches, make_batches
from research.data.documents import RowBatches, make_rows
from research.data.layouts import ROWS
from research.data.methods import chosen
from research.data.sources import SOURCES, Source
from research.data.templates import Method
from research.data.vocabulary import text_info
from research.eval.embed import make_embedder
from research.eval.evaluators import EVALS
from research.losses.contrastive import LOSSES
from research.losses.nested import NESTED
from research.models import config as models
from research.models import context, readouts
from research.models.config import EncoderConfig
from research.models.pooling import POOLS
from research.models.position_tables import TABLES
from research.objectives import OBJECTIVES, chunks
from research.perplexity import MEASURES
from research.pretraining.objectives import PRETRAINING, check_rows
from research.sections import bind, build, differing
from research.start import initialiser, taken
from research.structs import Objective, Params
from research.train.log import write_json
from research.train.loop import Experiment
from research.train.optimizers import OPTIMIZERS
from research.tuning import TUNING, is_partial, whole

KEYS = (
    *("seed", "steps", "batch_size", "max_length", "tokenizer", "encoder"),
    *("init_from", "extend", "method", "pool", "objective", "tuning", "data"),
    *("optimizer", "mesh", "evals", "log_every", "save_every", "eval_every"),
)

# Rows of a source that a tokeniser is trained on, about.
TOKENIZER_ROWS = 10_000


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
    mesh = parallel.make_mesh(mesh_shape)
    sources = {name: build(SOURCES, part) for name, part in config.data.items()}
    tokenizer = _tokenizer(config, sources, workdir)
    shape = build(ENCODERS, config.encoder)
    cfg = context.extended_config(shape, _methods(config))
    _check_lengths(config, cfg, tokenizer)
    method = _method(config)
    cache = cache or workdir / "tokens"
    batches = _batches(config, sources, tokenizer, mesh, cache, method)
    training = _training(config, shape, cfg)
    objective = _objective(config, training, tokenizer, batches)
    pool = readouts.written(config.pool)
    start = None
    if config.init_from:
        start = taken(config.init_from, shape, tokenizer, pool)
    longest = cfg.max_len if cfg.max_len > shape.max_len else config.max_length
    model = {
        "encoder": dataclasses.asdict(cfg),
        "pool": pool,
        "max_length": longest,
        "prompts": _prompts(sources),
        "method": config.method.to_dict(),
        "normalize": config.get("loss", {}).get("similarity", "cosine") == "cosine",
        "dims": _dims(config),
        "partial": is_partial(config.tuning.name),
        "adapters": _adapters(config),
        "base": config.init_from,
    }
    write_json(workdir / "model.json", model)
    evals = config.evals.items()

    def measured(measure, params: Params, frozen: Params):
        own = whole(params, frozen)["encoder"]
        return measure(own, cfg, tokenizer, longest, mesh)

    def embedder(params: Params, frozen: Params):
        return make_embedder(
            whole(params, frozen)["encoder"],
            cfg,
            tokenizer,
            pool=pool,
            max_length=longest,
            prompts=model["prompts"],
            normalize=model["normalize"],
            method=method,
            mesh=mesh,
            adapters=model["adapters"],
        )

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
        evaluators={n: build(EVALS, p) for n, p in evals if p.name not in MEASURES},
        make_embedder=embedder,
        measures={
            name: partial(measured, build(MEASURES, part))
            for name, part in evals
            if part.name in MEASURES
        },
        initialise=initialiser(objective, shape, _methods(config), start),
        note=start.note if start else "",
    )


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the workdir this config's, by the config.json in it.

    Raises:
        ValueError: it holds a run of another config.
    """
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        old = json.loads(path.read_text())
        if lines := differing(old, new):
            raise ValueError(
                f"{workdir} holds a run of another config: {'; '.join(lines[:3])}; "
                "use another workdir, or delete this one"
            )
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)


def keys(objective: str) -> tuple[str, ...]:
    """The top-level keys of the configs of an objective."""
    return (*KEYS, *(("rows",) if objective in PRETRAINING else ("loss", "nested")))


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
    if "rows" in config:
        check_rows(config.objective, config.rows)


def _tokenizer(config, sources: Mapping[str, Source], workdir: Path) -> Tokenizer:
    """The workdir's own tokeniser; made, and kept there, in a new run."""
    path = workdir / "tokenizer.json"
    if path.exists():
        return text.load_tokenizer(path)

    def corpus() -> Iterable[str]:
        for source in sources.values():
            # Evenly spaced rows say as much about words as all of them.
            step = -(-len(source.rows) // TOKENIZER_ROWS)
            for row in source.rows[::step]:
                yield from dict.fromkeys((row.query, *row.positives, *row.negatives))

    tokenizer = build(TOKENIZERS, config.tokenizer, corpus)
    temporary = path.with_suffix(".tmp")
    tokenizer.save(str(temporary))
    temporary.rename(path)
    return tokenizer


def _check_lengths(config, cfg: EncoderConfig, tokenizer: Tokenizer) -> None:
    if config.max_length > cfg.max_len:
        raise ValueError(
            f"max_length {config.max_length} is beyond the encoder's {cfg.max_len} "
            "positions (encoder.max_len)"
        )
    if tokenizer.get_vocab_size() > cfg.vocab:
        raise ValueError(
            f"the tokeniser has {tokenizer.get_vocab_size()} tokens, the encoder's "
            f"table only {cfg.vocab} (encoder.vocab)"
        )


def _methods(config) -> dict[str, dict[str, Any]]:
    """The methods that extend the context, with their arguments."""
    methods = {}
    for part in config.extend.values():
        arguments = dict(part.items())
        name = arguments.pop("name")
        if name in methods:
            raise ValueError(f"extend names {name} twice")
        methods[name] = arguments
    return methods


def _training(config, shape: EncoderConfig, cfg: EncoderConfig) -> EncoderConfig:
    """The extension `cfg` of a shape as it is trained.

    Texts begin anywhere in a longer position table, so that all its rows are trained.
    """
    if not set(_methods(config)) & set(TABLES):
        return cfg
    return dataclasses.replace(cfg, random_offset=cfg.max_len - config.max_length)


def _method(config) -> Method | None:
    """The method that texts are put by, None for plain, and its pooling the config's.

    Raises:
        ValueError: there is no such method, or the config pools otherwise.
    """
    method = chosen(config.method)
    if method and method.pool not in (None, config.pool.name):
        raise ValueError(
            f"method {config.method.name} pools by {method.pool!r} and the config by "
            f"{config.pool.name!r}: set pool.name={method.pool}, or method.pool="
            f"{config.pool.name}"
        )
    return method


def _batches(
    config, sources, tokenizer, mesh, cache: Path, method: Method | None
) -> Batches | RowBatches:
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
    if "rows" in config:
        layout = bind(ROWS, config.rows)
        return make_rows(sources, tokenizer, layout, row_multiple=multiple, **shape)
    multiple *= chunks(config.batch_size, config.objective.micro_batch)
    length = config.max_length
    shape |= {"row_length": length, "row_multiple": multiple, "method": method}
    names = _adapters(config)
    if len(names) > 1:
        shape["adapters"] = names
    return make_batches(sources, tokenizer, **shape)


def _objective(config, cfg: EncoderConfig, tokenizer, batches) -> Objective:
    pool = readouts.pooling(readouts.written(config.pool))
    if "rows" in config:
        if isinstance(pool, readouts.Readout):
            raise ValueError(
                f"pool {config.pool.name} has parameters, which "
                f"{config.objective.name} does not train; allowed: {', '.join(POOLS)}"
            )
        info = text_info(tokenizer, [part.table for part in batches.parts])
        return build(
            TUNING, config.tuning, build(PRETRAINING, config.objective, cfg, info)
        )
    loss = bind(LOSSES, config.loss)
    nested = build(NESTED, config.nested, loss)
    objective = build(OBJECTIVES, config.objective, cfg, pool, nested)
    return build(TUNING, config.tuning, objective)


def _adapters(config) -> list[str]:
    """The names of the adapters that are trained, in their order; none without."""
    names = list(config.tuning.get("adapters", ()))
    if len(names) > 1 and "rows" in config:
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
    sizes = config.objective if "rows" in config else config.nested
    widths = {int(dim) for _, dim in sizes.get("pairs", ())}
    return sorted(widths | set(sizes.get("dims", ())), reverse=True)


def trained_tokenizer(
    corpus: Callable[[], Iterable[str]], *, vocab: int = 8_192, kind: str = "wordpiece"
) -> Tokenizer:
    """A tokeniser of at most `vocab` tokens, trained on the run's own texts."""
    return text.train_tokenizer(corpus(), vocab, kind)


def pretrained_tokenizer(
    corpus: Callable[[], Iterable[str]], *, model: str
) -> Tokenizer:
    """The tokeniser of a model."""
    del corpus
    return pretrained.load(model).tokenizer


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
    cfg = pretrained.load(model).config
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


TOKENIZERS = {"trained": trained_tokenizer, "pretrained": pretrained_tokenizer}
ENCODERS = {**models.ENCODERS, "pretrained": pretrained_encoder}
