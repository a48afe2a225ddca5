"""Merging of models by name: soups, SLERP, task vectors, Self-Positioning.

The arithmetic is in `train.merging`. What a model is besides its parameters (prompts,
maximum length, normalization) is taken from the first one.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from research.config_sections import build, parse_section
from research.data.pairs.pair_batches import make_pair_batches
from research.data.sources import SOURCES
from research.inference.model import EmbeddingModel
from research.interop.load import load
from research.losses.contrastive import infonce
from research.losses.matryoshka import full_size
from research.losses.registry import score_loss
from research.models.pooling.registry import parse_pooling
from research.models.positions.methods import config_fields
from research.objectives.contrastive import contrastive
from research.train import merging
from research.types import Batch, Params

# Fields of the encoder that do not change what its parameters compute.
FREE_FIELDS = ("dropout", "attention_dropout", "dtype", "remat", "unroll", "attention")

Models = Mapping[str, EmbeddingModel]


class Merge(NamedTuple):
    """Merged parameters, and numbers that a method found by itself.

    Attributes:
        params: {"encoder": parameters, "dense": layers after the pooling}.
        record: Numbers for the user.
    """

    params: Params
    record: Mapping[str, Any] = {}


def merge_models(
    names: Sequence[str], method: str = "average"
) -> tuple[EmbeddingModel, Mapping[str, Any]]:
    """Loads models, and merges them into one.

    Args:
        names: Names of the models, as `interop.load` takes them.
        method: One of METHODS as call text, such as "slerp(t=0.3)".

    Returns:
        The merged model, with all but the parameters of the first one, and what the
        method search.

    Raises:
        ValueError: The method is unknown, or the models have other shapes, tokens,
            poolings or adapters.
    """
    # Mistakes in the flags, before models are loaded
    section = parse_section(METHODS, method)
    if len(set(names)) < len(names):
        raise ValueError(f"the models {', '.join(names)} are not all different")
    models = _load_models(names)
    merge = build(METHODS, section, models)
    # The model is no checkpoint of a run; its base is that of all models
    first = next(iter(models.values()))
    bases = {model.base for model in models.values()}
    merged = first._replace(
        params=merge.params["encoder"],
        dense=merge.params["dense"],
        base=first.base if len(bases) == 1 else "",
        step=None,
    )
    return merged, merge.record


def average(models: Models, *, weights: tuple[float, ...] = ()) -> Merge:
    """The weighted mean of the parameters (model soup, Wortsman et al. 2022).

    Args:
        models: Models by name.
        weights: A weight for each model, relative to the others; all equal if empty.
    """
    return Merge(merging.average(_list_params(models), weights))


def slerp(models: Models, *, t: float = 0.5, base: str = "") -> Merge:
    """Spherical linear interpolation of two models (Shoemake 1985).

    Args:
        models: Two models by name.
        t: Position between them, from 0 (the first) to 1 (the second).
        base: The model that both started from, whose differences from them are then
            interpolated in place of the parameters; "" for none.

    Raises:
        ValueError: There are not two models, or t is not in 0 ... 1.
    """
    if len(models) != 2:
        raise ValueError(
            f"slerp goes from one model to another, but there are {len(models)}; "
            "average and self_positioning take any number"
        )
    if not 0 <= t <= 1:
        raise ValueError(f"slerp's t is {t}; it should be in 0 ... 1")
    if not base:
        return Merge(merging.slerp(*_list_params(models), t))
    start, vectors = _make_task_vectors(models, base)
    vector = merging.slerp(*vectors, t)
    return Merge(merging.add_task_vectors(_get_params(start), [vector], [1.0]))


def task_vectors(
    models: Models, *, base: str, scale: float | tuple[float, ...] = 1.0
) -> Merge:
    """The base plus the scaled differences of the models from it (Ilharco et al. 2023).

    Args:
        models: Models that were trained from the base, by name.
        base: Name of the base.
        scale: Factor of all differences, or of each; a negative one removes what its
            model has learned.

    Raises:
        ValueError: The number of factors differs from that of the models.
    """
    scales = scale if isinstance(scale, tuple) else (scale,) * len(models)
    if len(scales) != len(models):
        raise ValueError(f"{len(scales)} scales are given for {len(models)} models")
    start, vectors = _make_task_vectors(models, base)
    return Merge(merging.add_task_vectors(_get_params(start), vectors, scales))


def self_positioning(
    models: Models,
    *,
    base: str,
    data: str,
    steps: int = 1_000,
    batch_size: int = 32,
    learning_rate: float = 5e-3,
    penalty: float = 0.05,
    temperature: float = 0.05,
    seed: int = 0,
) -> Merge:
    """Weights of the models and their distance from the base, found on a probe set.

    Self-Positioning (arXiv:2410.15035): SLERP of the task vectors, in the order of the
    models, with weights and a scale that minimize InfoNCE on the probe set.

    Args:
        models: Models that were trained from the base, by name.
        base: Name of the base.
        data: A file of pairs or triplets, or pydocs.
        steps: Number of updates, each on a batch of the probe set.
        batch_size: Number of pairs per batch.
        learning_rate: Step size of the weights and the scale.
        penalty: Weight of the scale in the objective.
        temperature: Temperature of InfoNCE.
        seed: Seed of the batches' order.

    Raises:
        ValueError: The models have dense layers, or the data has fewer pairs than a
            batch.
    """
    start, vectors = _make_task_vectors(models, base)
    if start.dense:
        raise ValueError(
            "self_positioning trains encoders, but the models have dense layers after "
            "the pooling"
        )
    # The probe loss: InfoNCE of the encoder without dropout
    cfg = dataclasses.replace(start.config, dropout=0.0, attention_dropout=0.0)
    # The similarity of normalized vectors is their cosine
    similarity = "cosine" if start.normalize else start.similarity
    loss_of_scores = partial(infonce, temperature=temperature)
    size_loss = full_size(score_loss(loss_of_scores, similarity))
    objective = contrastive(cfg, parse_pooling(start.pool), size_loss)

    def loss(params: Params, batch: Batch):
        return objective.loss(params, {}, batch, jax.random.key(0)).value

    def make_batches(count: int) -> Iterator[Batch]:
        return _make_probe_batches(start, data, count, batch_size, seed)

    def merge(weights, scale) -> Params:
        vector = merging.fold_slerp(vectors, weights)
        return merging.add_task_vectors(_get_params(start), [vector], [scale])

    search = merging.search_coefficients(
        loss,
        _get_params(start),
        vectors,
        make_batches(steps),
        learning_rate=learning_rate,
        penalty=penalty,
    )
    # The loss before and after, on the same batches: a tenth of those of the search
    params = merge(search.weights, search.scale)
    compiled = jax.jit(loss)
    trees = merge([1.0] * len(models), 1.0), params
    losses = [
        [float(compiled(tree, batch)) for tree in trees]
        for batch in make_batches(-(-steps // 10))
    ]
    before, after = (sum(values) / len(values) for values in zip(*losses, strict=True))
    record = {
        "weights": search.weights.tolist(),
        "scale": float(search.scale),
        "probe_loss_before": before,
        "probe_loss_after": after,
    }
    return Merge(params, record)


def _make_probe_batches(
    model: EmbeddingModel, data: str, steps: int, batch_size: int, seed: int
) -> Iterator[Batch]:
    # Templates take the place of prompts
    roles = () if model.prompt else ("query", "document")
    prompts = {f"{role}_prompt": model.prompts[role] for role in roles}
    if data == "pydocs":
        source = SOURCES["pydocs"](**prompts)
    else:
        source = SOURCES["files"](path=data, **prompts)
    # Tokenized texts are cached only while the search runs
    with tempfile.TemporaryDirectory() as cache:
        batches = make_pair_batches(
            {"probe": source},
            model.tokenizer,
            batch_size=batch_size,
            max_length=model.max_length,
            seed=seed,
            cache=Path(cache),
            prompt=model.prompt,
        )
        yield from map(batches, range(steps))


def _make_task_vectors(
    models: Models, base: str
) -> tuple[EmbeddingModel, list[Params]]:
    """The base, and the differences of the models from it."""
    (start,) = _load_models([base], first=next(iter(models.items()))).values()
    params = _get_params(start)
    return start, [merging.subtract(tree, params) for tree in _list_params(models)]


def _load_models(
    names: Sequence[str], first: tuple[str, EmbeddingModel] | None = None
) -> dict[str, EmbeddingModel]:
    """Models by name, which fit each other and a model that was loaded before.

    Raises:
        ValueError: A model has several adapters, or does not fit the first one.
    """
    models = {}
    for name in names:
        models[name] = model = load(name)
        if model.adapters:
            raise ValueError(
                f"{name} has the adapters {', '.join(model.adapters)}; export one of "
                "them, and merge that"
            )
        first = first or (name, model)
        _check_fit(*first, name, model)
    return models


def _check_fit(
    first: str, expected: EmbeddingModel, name: str, model: EmbeddingModel
) -> None:
    """Raises ValueError if two models cannot be merged."""
    # The architecture, tokens and pooling, then the shapes of all parameters
    expected_fields, fields = map(config_fields, (expected.config, model.config))
    for part, owner in ((expected_fields, expected), (fields, model)):
        layers = [layer.activation for layer in owner.dense]
        part |= {"pool": owner.pool, "dim": owner.width}
        part |= {"dense layers": layers or "none"}
    lines = [
        f"{key} {fields[key]} and not {value}"
        for key, value in expected_fields.items()
        if key not in FREE_FIELDS and fields[key] != value
    ]
    if lines:
        raise ValueError(
            f"{name} cannot be merged with {first}: it has {', '.join(lines[:3])}"
        )
    if expected.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise ValueError(
            f"{name} cannot be merged with {first}: its tokenizer has other tokens"
        )
    merging.check_shapes({first: _get_params(expected), name: _get_params(model)})


def _list_params(models: Models) -> list[Params]:
    return [_get_params(model) for model in models.values()]


def _get_params(model: EmbeddingModel) -> Params:
    """The parameters of the encoder and of the layers after its pooling."""
    return {"encoder": model.params, "dense": model.dense}


# Ways to merge models, by the name in --method.
METHODS = {
    "average": average,
    "slerp": slerp,
    "task_vectors": task_vectors,
    "self_positioning": self_positioning,
}
