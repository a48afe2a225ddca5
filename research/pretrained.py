"""Models by name: a trained workdir, a folder, an installed package or a hub id."""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer, normalizers

from research.data.methods import chosen
from research.data.templates import Method
from research.data.text import load_tokenizer
from research.models import adapters, readouts
from research.models.config import EncoderConfig
from research.models.families import read_config
from research.models.huggingface import read_safetensors
from research.models.peft import read_adapter
from research.models.projection import Dense
from research.structs import Params
from research.train.checkpoints import restore_params
from research.tuning import whole


class Pretrained(NamedTuple):
    """A model and everything that turns a text into its embedding.

    Attributes:
        params: the encoder's tree, as `encoder.init` makes it.
        config: the encoder's shape.
        tokenizer: without padding or truncation.
        pool: such as "mean", or whatever `readouts.pooling` reads.
        max_length: the longest text in tokens, special tokens included.
        prompts: what is put before a text, for the roles "query" and "document".
        normalize: whether embeddings are divided by their length.
        dense: layers that the pooled vector goes through.
        dims: the widths that the model was trained at; empty if not known.
        dim: how many leading numbers of the vector are kept, before it is normalised;
            None for all.
        method: how texts are put to it; None as they are, after `prompts`.
        dropped: what else was trained with the encoder, and is not part of the model:
            such as 'decoder (443,904 parameters)'.
        adapters: the names of the adapters in `params`, in their order; a text goes
            through the one named like its role, or through the first.
        base: the model that the training began with, by name; '' if not known.
    """

    params: Params
    config: EncoderConfig
    tokenizer: Tokenizer
    pool: str
    max_length: int
    prompts: dict[str, str]
    normalize: bool
    dense: tuple[Dense, ...] = ()
    dims: tuple[int, ...] = ()
    dim: int | None = None
    method: Method | None = None
    dropped: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    base: str = ""

    @property
    def width(self) -> int:
        """How many numbers the embedding has."""
        if self.dim is not None:
            return self.dim
        if self.dense:
            return self.dense[-1].kernel.shape[1]
        return readouts.width(self.pool, self.config)


def load(
    model: str,
    sharding: Callable[[Params], Any] | None = None,
    *,
    merge: bool = True,
) -> Pretrained:
    """The model of that name.

    A workdir that `launch.train` made; a sentence-transformers folder, of the layout of
    versions before or after 6; or a plain Hugging Face folder, which says nothing of
    pooling: mean, normalised, no prompts (sentence-transformers pools the same but
    does not normalise; cosines are equal).

    Args:
        model: what `folder` accepts.
        sharding: where parameters go as they are read, as of `read_safetensors`; those
            of a workdir stay on the host.
        merge: add the adapter of a model that has one to its kernels, which makes it a
            plain one; several stay beside them.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ValueError: the folder asks for something that we do not compute, or its
            weights do not fit its config.
    """
    path = folder(model)
    if (path / "model.json").exists():
        loaded = _workdir(path)
        return adapted(loaded) if merge and len(loaded.adapters) == 1 else loaded
    if (path / "modules.json").exists():
        return _sentence_transformers(path, sharding)
    return _transformers(path, sharding)


def settings(model: Pretrained) -> dict[str, Any]:
    """How the model embeds: the keyword arguments of `embed.make_embedder`."""
    names = ("tokenizer", "pool", "max_length", "prompts", "normalize", "dense", "dim")
    names += ("adapters",) if model.method is None else ("adapters", "method")
    return {name: getattr(model, name) for name in names}


def load_adapted(model: str, adapter: str | None = None) -> Pretrained:
    """The model of that name, as an adapter makes it.

    Args:
        model: as `load` takes it.
        adapter: the name of one of its adapters; or a folder that `peft` wrote, for any
            model without; None where it has none, or one, or those of the roles.

    Raises:
        ValueError: the model has no such adapter, or none was named and it has several
            that are not of roles, or the folder's does not fit.
    """
    loaded = load(model, merge=False)
    if adapter is None:
        if set(loaded.adapters) in (set(), {"query", "document"}):
            return loaded
        return adapted(loaded)
    if adapter in loaded.adapters or not Path(adapter).expanduser().is_dir():
        return adapted(loaded, adapter)
    if loaded.adapters:
        raise ValueError(
            f"{adapter} is a folder, but {model} has adapters of its own: "
            f"{', '.join(loaded.adapters)}"
        )
    folder = Path(adapter).expanduser()
    params = read_adapter(folder, loaded.params, loaded.config)
    return adapted(loaded._replace(params=params, adapters=(adapter,)))


def adapted(model: Pretrained, name: str | None = None) -> Pretrained:
    """The plain model that one of its adapters makes of it.

    Args:
        model: has adapters.
        name: that of the adapter; None where there is one.

    Raises:
        ValueError: there is none of that name, or several and no name.
    """
    return only(model, name)._replace(
        params=adapters.merged(model.params, _number(model, name)), adapters=()
    )


def only(model: Pretrained, name: str | None = None) -> Pretrained:
    """The model with one of its adapters, beside its kernels; as `adapted`."""
    number = _number(model, name)
    return model._replace(
        params=adapters.chosen(model.params, number), adapters=(model.adapters[number],)
    )


def _number(model: Pretrained, name: str | None) -> int:
    known = ", ".join(model.adapters) or "none"
    if name is None and len(model.adapters) != 1:
        raise ValueError(f"one adapter of the model must be named; it has {known}")
    if name is not None and name not in model.adapters:
        raise ValueError(f"the model has no adapter {name!r}; it has {known}")
    return 0 if name is None else model.adapters.index(name)


def folder(model: str) -> Path:
    """The folder that holds a model.

    Args:
        model: a path; `package:NAME`, for the model inside an installed Python package;
            or the id of a model of the Hugging Face hub, fetched (or, with
            HF_HUB_OFFLINE=1, taken from the cache) by `huggingface_hub`.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: the hub cannot be reached, or does not give that model.
    """
    if model.startswith("package:"):
        return _package(model.removeprefix("package:"))
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise FileNotFoundError(f"no model folder {model}")
    return _hub(model)


def _package(name: str) -> Path:
    """The folder with a config.json that lies least deep in an installed package."""
    if not name.isidentifier() or (spec := importlib.util.find_spec(name)) is None:
        raise FileNotFoundError(f"no Python package {name!r} is installed")
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    found = [
        file.parent
        for root in roots
        for file in sorted(root.rglob("config.json"), key=lambda f: len(f.parts))
        if any(file.parent.glob("*.safetensors"))
    ]
    if not found:
        raise FileNotFoundError(f"the Python package {name!r} holds no model folder")
    return found[0]


def _hub(name: str) -> Path:
    """The snapshot of a hub model in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.json", "*.txt", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{name!r} is no folder here, and the Hugging Face hub did not give a "
            f"model of that name ({type(error).__name__})"
        ) from None


def _workdir(path: Path) -> Pretrained:
    """A model that `launch.train` trained: its newest checkpoint."""
    fields = _json(path / "model.json")
    partial = fields.get("partial", False)
    parts = restore_params(path / "checkpoints", frozen=partial)
    parts = dict(whole(*parts) if partial else parts)
    try:
        return Pretrained(
            params=parts.pop("encoder"),
            config=EncoderConfig(**fields["encoder"]),
            tokenizer=load_tokenizer(path),
            pool=fields["pool"],
            max_length=fields["max_length"],
            prompts=fields["prompts"],
            normalize=fields["normalize"],
            dims=tuple(fields["dims"]),
            method=chosen(fields.get("method", {"name": "plain"})),
            dropped=tuple(f"{n} ({_size(x):,} parameters)" for n, x in parts.items()),
            adapters=tuple(fields.get("adapters", ())),
            base=fields.get("base", ""),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / 'model.json'} does not fit: {error}") from None


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _transformers(
    path: Path,
    sharding: Callable[[Params], Any] | None,
    max_length: int | None = None,
) -> Pretrained:
    """A Hugging Face folder, with the defaults of `load`."""
    config = read_config(_json(path / "config.json"))
    if max_length is None:
        tokenizer_config = _json(path / "tokenizer_config.json", missing={})
        max_length = tokenizer_config.get("model_max_length") or config.max_len
    return Pretrained(
        params=read_safetensors(path, config, sharding),
        config=config,
        tokenizer=load_tokenizer(path),
        pool="mean",
        max_length=int(min(max_length, config.max_len)),
        prompts={"query": "", "document": ""},
        normalize=True,
        dims=tuple(_json(path / "config.json").get("matryoshka_dimensions", ())),
    )


def _sentence_transformers(
    path: Path, sharding: Callable[[Params], Any] | None
) -> Pretrained:
    """A folder whose modules.json is Transformer, Pooling and perhaps more.

    A last Dense module that only cuts the vector to its first numbers, as `export`
    writes it, is our `dim`.
    """
    modules = _json(path / "modules.json")
    kinds = [module["type"].split(".")[-1] for module in modules]
    whole = " ".join(kinds)
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", whole):
        raise ValueError(
            f"{path / 'modules.json'} has the modules {', '.join(kinds)}; we compute "
            "Transformer, Pooling, any number of Dense, and Normalize, in this order"
        )
    paths = [path / module["path"] for module in modules]
    options = _json(paths[0] / "sentence_bert_config.json", missing={})
    model = _transformers(paths[0], sharding, options.get("max_seq_length"))
    if options.get("do_lower_case"):
        _lower_case(model.tokenizer)
    prompts = _prompts(_json(path / "config_sentence_transformers.json", missing={}))
    dense = [_dense(p) for p, k in zip(paths, kinds, strict=True) if k == "Dense"]
    dim = None
    if dense and _only_cuts(dense[-1]):
        dim = dense.pop().kernel.shape[1]
    return model._replace(
        pool=_pool(paths[1] / "config.json", prompts),
        prompts=prompts,
        normalize="Normalize" in kinds,
        dense=tuple(dense),
        dim=dim,
    )


def _pool(file: Path, prompts: Mapping[str, str]) -> str:
    """Our name of the pooling that 1_Pooling/config.json asks for."""
    fields = _json(file)
    modes = fields.get("pooling_mode")
    if modes is None:  # before version 6: a flag for each
        modes = [name for flag, name in POOLING_FLAGS.items() if fields.get(flag)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"{file} pools by {' and '.join(modes)}; we compute one of "
            f"{', '.join(POOLINGS)}"
        )
    if not fields.get("include_prompt", True) and any(prompts.values()):
        raise ValueError(f"{file} leaves the prompt out of pooling, which we do not")
    return POOLINGS[modes[0]]


def _prompts(fields: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of queries and of documents; the default prompt where not named."""
    named = fields.get("prompts") or {}
    default = named.get(fields.get("default_prompt_name"), "")
    documents = [named[n] for n in ("document", "passage", "corpus") if n in named]
    return {
        "query": named.get("query", default),
        "document": documents[0] if documents else default,
    }


def _dense(path: Path) -> Dense:
    """The layer of a Dense module."""
    fields = _json(path / "config.json")
    activation = fields.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{path / 'config.json'} has activation_function {activation}; we compute "
            f"{', '.join(ACTIVATIONS)}"
        )
    pooled = {fields.get(f"module_{side}_name") for side in ("input", "output")}
    if fields.get("use_residual") or pooled - {"sentence_embedding", None}:
        raise ValueError(
            f"{path / 'config.json'} has a residual sum, or reads or writes something "
            "else than sentence_embedding, which we do not compute"
        )
    file = path / "model.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{path} has no {file.name}")
    weights = {name: x.astype(np.float32) for name, x in load_file(file).items()}
    kernel = np.ascontiguousarray(weights["linear.weight"].T)
    return Dense(kernel, weights.get("linear.bias"), ACTIVATIONS[activation])


def _only_cuts(layer: Dense) -> bool:
    """Whether a layer does nothing but keep the first numbers."""
    before, after = layer.kernel.shape
    linear = layer.bias is None and layer.activation == "identity"
    return (
        linear
        and after <= before
        and np.array_equal(layer.kernel, np.eye(before, after))
    )


def _lower_case(tokenizer: Tokenizer) -> None:
    """Makes the tokenizer lower-case its input first."""
    steps = [normalizers.Lowercase()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)


def _json(file: Path, missing: Any = None) -> Any:
    """The parsed file; `missing` if given and there is no such file."""
    if missing is not None and not file.exists():
        return missing
    if not file.exists():
        raise FileNotFoundError(f"{file.parent} has no {file.name}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None


# Poolings: their name -> ours.
POOLINGS = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Activations of Dense modules: their name -> ours.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
}
