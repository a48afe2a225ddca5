"""Models by name: a trained workdir, a folder, an installed package or a hub id."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer, normalizers

from research.config_sections import parse_section
from research.inference.model import EmbeddingModel, merge_adapter
from research.interop.hf.families import read_config
from research.interop.hf.safetensors import read_safetensors
from research.interop.peft import read_adapter
from research.interop.sentence_transformers.read import read_json, read_modules
from research.models.lora import full_params
from research.models.positions.methods import encoder_config
from research.text.prompts import PROMPTS, build_prompt
from research.text.tokenization import load_tokenizer
from research.train.checkpoints import restore_params
from research.types import Params


def load(
    model: str,
    sharding: Callable[[Params], Any] | None = None,
    *,
    merge: bool = True,
) -> EmbeddingModel:
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
    path = resolve_folder(model)
    if (path / "model.json").exists():
        loaded = _workdir(path)
        return merge_adapter(loaded) if merge and len(loaded.adapters) == 1 else loaded
    if (path / "modules.json").exists():
        return _sentence_transformers(path, sharding)
    return _transformers(path, sharding)


def load_adapted(model: str, adapter: str | None = None) -> EmbeddingModel:
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
        return merge_adapter(loaded)
    if adapter in loaded.adapters or not Path(adapter).expanduser().is_dir():
        return merge_adapter(loaded, adapter)
    if loaded.adapters:
        raise ValueError(
            f"{adapter} is a folder, but {model} has adapters of its own: "
            f"{', '.join(loaded.adapters)}"
        )
    folder = Path(adapter).expanduser()
    params = read_adapter(folder, loaded.params, loaded.config)
    return merge_adapter(loaded._replace(params=params, adapters=(adapter,)))


def resolve_folder(model: str) -> Path:
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


def _workdir(path: Path) -> EmbeddingModel:
    """A model that `launch.train` trained: its newest checkpoint."""
    fields = read_json(path / "model.json")
    partial = fields.get("partial", False)
    parts = restore_params(path / "checkpoints", frozen=partial)
    parts = dict(full_params(*parts) if partial else parts)
    try:
        return EmbeddingModel(
            params=parts.pop("encoder"),
            config=encoder_config(fields["encoder"]),
            tokenizer=load_tokenizer(path),
            pool=fields["pool"],
            max_length=fields["max_length"],
            prompts=fields["prompts"],
            normalize=fields["normalize"],
            dims=tuple(fields["dims"]),
            prompt=build_prompt(parse_section(PROMPTS, fields["prompt"])),
            dropped=tuple(f"{n} ({_size(x):,} parameters)" for n, x in parts.items()),
            adapters=tuple(fields.get("adapters", ())),
            base=fields.get("base", ""),
            head=parts.get("head"),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / 'model.json'} does not fit: {error}") from None


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _transformers(
    path: Path,
    sharding: Callable[[Params], Any] | None,
    max_length: int | None = None,
) -> EmbeddingModel:
    """A Hugging Face folder, with the defaults of `load`."""
    config = read_config(read_json(path / "config.json"))
    if max_length is None:
        tokenizer_config = read_json(path / "tokenizer_config.json", missing={})
        max_length = tokenizer_config.get("model_max_length") or config.max_len
    return EmbeddingModel(
        params=read_safetensors(path, config, sharding),
        config=config,
        tokenizer=load_tokenizer(path),
        pool="mean",
        max_length=int(min(max_length, config.max_len)),
        prompts={"query": "", "document": ""},
        normalize=True,
        dims=tuple(read_json(path / "config.json").get("matryoshka_dimensions", ())),
    )


def _sentence_transformers(
    path: Path, sharding: Callable[[Params], Any] | None
) -> EmbeddingModel:
    """A folder whose modules.json is Transformer, Pooling and perhaps more."""
    found = read_modules(path)
    model = _transformers(found.body, sharding, found.max_length)
    if found.lower_case:
        _lower_case(model.tokenizer)
    names = ("pool", "prompts", "normalize", "dense", "dim")
    return model._replace(**{name: getattr(found, name) for name in names})


def _lower_case(tokenizer: Tokenizer) -> None:
    """Makes the tokenizer lower-case its input first."""
    steps = [normalizers.Lowercase()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
