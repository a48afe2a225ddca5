"""From a config to the built parts of a run: the only module that reads a config."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from tokenizers import Tokenizer

from research import parallel, pretrained
from research.data import text
from research.data.batches import Batches, make_batches
from research.data.sources import SOURCES, Source
from research.eval.embed import make_embedder
from research.eval.evaluators import EVALS
from research.losses.contrastive import LOSSES
from research.losses.nested import NESTED
from research.models import config as models
from research.models import context, encoder
from research.models.config import EncoderConfig
from research.models.pooling import POOLS
from research.models.position_tables import TABLES
from research.objectives import OBJECTIVES, chunks
from research.sections import bind, build
from research.structs import Key, Objective, Params
from research.train.log import write_json
from research.train.loop import Experiment
from research.train.optimizers import OPTIMIZERS

KEYS = (
    *("seed", "steps", "batch_size", "max_length", "tokenizer", "encoder"),
    *("init_from", "extend", "pool", "objective", "loss", "nested"),
    *("data", "optimizer", "mesh", "evals", "log_every", "save_every", "eval_every"),
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
        config: every top-level key of KEYS, as configs/common.py makes them.
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
    batches = _batches(config, sources, tokenizer, mesh, cache or workdir / "tokens")
    objective = _objective(config, _training(config, shape, cfg))
    longest = cfg.max_len if cfg.max_len > shape.max_len else config.max_length
    model = {
        "encoder": dataclasses.asdict(cfg),
        "pool": config.pool.name,
        "max_length": longest,
        "prompts": _prompts(sources),
        "normalize": True,
        "dims": _dims(config),
    }
    write_json(workdir / "model.json", model)

    def embedder(params: Params):
        return make_embedder(
            params["encoder"],
            cfg,
            tokenizer,
            pool=config.pool.name,
            max_length=longest,
            prompts=model["prompts"],
            mesh=mesh,
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
        evaluators={name: build(EVALS, part) for name, part in config.evals.items()},
        make_embedder=embedder,
        initialise=_initialise(config, shape, objective),
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
        if differing := _differing(old, new):
            raise ValueError(
                f"{workdir} holds a run of another config: {'; '.join(differing[:3])}; "
                "use another workdir, or delete this one"
            )
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)


def _differing(old, new, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in _differing(old.get(key), new.get(key), f"{name}.{key}")
        ]
    return [] if old == new else [f"{name[1:]} is {new!r} and was {old!r}"]


def _check_keys(config) -> None:
    unknown = sorted(set(config) - set(KEYS))
    missing = sorted(set(KEYS) - set(config))
    if unknown or missing:
        what = "unknown" if unknown else "missing"
        raise ValueError(
            f"{what} config key {', '.join(unknown or missing)}; "
            f"the keys are {', '.join(KEYS)}"
        )
    for name in ("steps", "batch_size", "max_length", "log_every"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; it should be at least 1")
    if not config.data:
        raise ValueError("the config names no data")


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
                yield row.query
                yield from (*row.positives, *row.negatives)

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


def _batches(config, sources, tokenizer, mesh, cache: Path) -> Batches:
    import jax

    parts = chunks(config.batch_size, config.objective.micro_batch)
    return make_batches(
        sources,
        tokenizer,
        batch_size=config.batch_size,
        max_length=config.max_length,
        seed=config.seed,
        cache=cache,
        row_length=config.max_length,
        row_multiple=mesh.shape["data"] * parts,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _objective(config, cfg: EncoderConfig) -> Objective:
    loss = bind(LOSSES, config.loss)
    nested = build(NESTED, config.nested, loss)
    pool = bind(POOLS, config.pool)
    return build(OBJECTIVES, config.objective, cfg, pool, nested)


def _initialise(
    config, cfg: EncoderConfig, objective: Objective
) -> Callable[[Key], tuple[Params, Params]] | None:
    """Random parameters, with the encoder's taken from `init_from` and extended."""
    methods = _methods(config)
    if not config.init_from and not set(methods) & set(TABLES):
        return None
    taken = _taken(config, cfg) if config.init_from else None

    def initialise(key: Key) -> tuple[Params, Params]:
        trained, frozen = objective.init(key)
        params = encoder.init(key, cfg) if taken is None else taken
        params, _ = context.extended(params, cfg, methods)
        return {**trained, "encoder": params}, frozen

    return initialise


def _taken(config, cfg: EncoderConfig) -> Params:
    """The parameters of the encoder of `init_from`, which has the config's shape."""
    loaded = pretrained.load(config.init_from)
    params, shape = encoder.truncated(
        loaded.params, loaded.config, min(cfg.depth, loaded.config.depth)
    )
    free = {name: getattr(cfg, name) for name in ("dropout", "dtype", "remat")}
    free["attention"] = cfg.attention
    if dataclasses.replace(shape, **free) != cfg:
        differing = _differing(dataclasses.asdict(shape), dataclasses.asdict(cfg))
        raise ValueError(
            f"the encoder of {config.init_from} is not the config's: "
            f"{'; '.join(differing)}"
        )
    return params


def _prompts(sources: Mapping[str, Source]) -> dict[str, str]:
    """The sources' prompts where all agree, else none."""
    prompts = [dict(source.prompts) for source in sources.values()]
    if all(p == prompts[0] for p in prompts):
        return prompts[0]
    return {"query": "", "document": ""}


def _dims(config) -> list[int]:
    """The widths that the nested loss trains, in descending order."""
    widths = {int(dim) for _, dim in config.nested.get("pairs", ())}
    return sorted(widths | set(config.nested.get("dims", ())), reverse=True)


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
    dropout: float = 0.1,
    dtype: str = "float32",
    remat: str = "dots",
) -> EncoderConfig:
    """The shape of a model's encoder, or of its first `depth` blocks."""
    cfg = pretrained.load(model).config
    if not (depth == -1 or 1 <= depth <= cfg.depth):
        raise ValueError(f"depth {depth} is not in 1 ... {cfg.depth} of {model}")
    return dataclasses.replace(
        cfg,
        depth=cfg.depth if depth == -1 else depth,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
    )


TOKENIZERS = {"trained": trained_tokenizer, "pretrained": pretrained_tokenizer}
ENCODERS = {**models.ENCODERS, "pretrained": pretrained_encoder}
