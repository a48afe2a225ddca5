"""A LoRA adapter of an encoder <-> a folder in the layout of Hugging Face's `peft`.

adapter_config.json holds rank, alpha and the names of modules;
adapter_model.safetensors holds `base_model.model.<module>.lora_A.weight` [r, in] and
`lora_B.weight` [out, r] of each module.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from research.atomic_write import atomic_write, read_json, to_json
from research.inference.model import EmbeddingModel
from research.interop.hf.families import find_family
from research.interop.hf.safetensors import save_tensors
from research.interop.hf.tensor_files import read_file
from research.interop.hf.weight_names import WEIGHT_NAMES, canonical_name
from research.interop.json_files import check_number
from research.models import lora
from research.models.config import EncoderConfig
from research.models.layers import LINEAR_LAYERS
from research.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.(?:default\.)?weight")
# Fields that change the computation or the parameters, and their values without effect.
_ALLOWED = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
    "lora_bias": (False, None),
    "target_parameters": ([], None),
    "use_bdlora": (False, None),
}


class LinearModule(NamedTuple):
    """The module of a Hugging Face family that holds one of our linear layers.

    Attributes:
        name: Name of the module, with `{l}` for the number of the layer.
        is_fused: Whether the module holds several of our linear layers in one.
    """

    name: str
    is_fused: bool


def export_adapter(model: EmbeddingModel, output: Path) -> dict[str, Any]:
    """Writes only the adapter of a model, in the layout of Hugging Face's `peft`.

    Args:
        model: A model with one adapter that is not merged.
        output: A folder that does not exist yet, or is empty.

    Returns:
        A record of output, adapter, rank and number of parameters.

    Raises:
        FileExistsError: The folder exists and is not empty.
        ValueError: The model has no adapter, or several, or peft cannot express it.
        OSError: No space, or no right to write.
    """
    if len(model.adapters) != 1:
        known = ", ".join(model.adapters) or "none"
        raise ValueError(f"one adapter is exported alone; the model has {known}")
    lora_params = lora.partition(model.params, lora.LORA_LEAVES)[0]
    with atomic_write(output, folder=True) as folder:
        write_adapter(folder, model.params, model.config, base=model.base)
    layers = lora_params["layers"].values()
    return {
        "output": str(output),
        "adapter": model.adapters[0],
        "rank": next(iter(layers))["lora"]["a"].shape[-1],
        "parameters": sum(x.size for x in jax.tree.leaves(lora_params)),
    }


def write_adapter(
    folder: Path, params: Params, cfg: EncoderConfig, *, base: str = ""
) -> None:
    """Writes the adapter of an encoder.

    Args:
        folder: An existing folder.
        params: The encoder's parameters, with one adapter.
        cfg: The encoder's shape.
        base: Name of the model that the adapter belongs to.

    Raises:
        ValueError: No Hugging Face family computes the encoder, or the family fuses an
            adapted layer with others.
        OSError: No space, or no right to write.
    """
    loras = {n: x["lora"] for n, x in params["layers"].items() if "lora" in x}
    modules = _linear_modules(cfg)
    # Tensors: lora_A [r, in] and lora_B [out, r] of each layer.
    tensors = {}
    for name, layer_params in loras.items():
        module = _require_unfused(modules, name)
        a = np.asarray(layer_params["a"], np.float32)  # [L, in..., r]
        b = np.asarray(layer_params["b"], np.float32)  # [L, r, out...]
        for layer in range(cfg.depth):
            prefix = _PREFIX + module.format(l=layer)
            down = a[layer].reshape(-1, a.shape[-1])
            up = b[layer].reshape(b.shape[1], -1)
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(down.T)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(up.T)
    # The fields of adapter_config.json; all layers have the same rank and scale.
    first = next(iter(loras.values()))
    rank, scale = first["a"].shape[-1], float(first["scale"][0, 0])
    dropout = float(first["rate"][0]) if "rate" in first else 0.0
    alpha = scale * rank
    fields = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": round(dropout, 6),
        "target_modules": _target_modules(modules, list(loras)),
        "bias": "none",
        "fan_in_fan_out": find_family(cfg) == "gpt2",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    text = to_json(fields, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    save_tensors(folder / WEIGHTS, tensors)


def read_adapter(folder: Path, params: Params, cfg: EncoderConfig) -> Params:
    """Adds the adapter of a folder to an encoder, without merging it.

    Args:
        folder: Folder with adapter_config.json and adapter_model.safetensors.
        params: The encoder's parameters, without adapters.
        cfg: The encoder's shape.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: The adapter is not plain LoRA, or does not fit the encoder.
    """
    fields = _read_config(folder)
    modules = _linear_modules(cfg)
    layer_of_module = {module.name: name for name, module in modules.items()}
    # Group the tensors: {our layer: {(block, "A" or "B"): tensor}}.
    by_layer: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for name, tensor in read_file(folder / WEIGHTS).items():
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        module = canonical_name(match[1]) if match else ""
        block = re.search(r"\d+", module)
        pattern = module and re.sub(r"\d+", "{l}", module, count=1)
        if not block or pattern not in layer_of_module:
            known = ", ".join(sorted(layer_of_module))
            raise ValueError(
                f"{folder / WEIGHTS} has {name}, which is no LoRA of a linear layer "
                f"of this encoder; these are {known}"
            )
        layer = layer_of_module[pattern]
        _require_unfused(modules, layer)
        by_layer.setdefault(layer, {})[int(block[0]), match[2]] = tensor
    if not by_layer:
        raise ValueError(f"{folder / WEIGHTS} holds no tensors")
    # Stack the tensors over blocks, and add them to the encoder's tree.
    loras = {
        name: _stack_lora(folder, fields, name, tensors, params, cfg)
        for name, tensors in by_layer.items()
    }
    added = {"layers": {name: {"lora": leaves} for name, leaves in loras.items()}}
    return lora.combine(params, added)


def _linear_modules(cfg: EncoderConfig) -> dict[str, LinearModule]:
    """{our linear layer: its module in the Hugging Face family}."""
    modules = {}
    for tensor in WEIGHT_NAMES[find_family(cfg)]:
        if tensor.gated not in (None, cfg.gated) or not tensor.name.endswith(".weight"):
            continue
        module = LinearModule(
            tensor.name.removesuffix(".weight"), len(tensor.paths) > 1
        )
        for path in tensor.paths:
            name = path.removeprefix("layers/").removesuffix("/kernel")
            if name in LINEAR_LAYERS:
                modules[name] = module
    return modules


def _require_unfused(modules: dict[str, LinearModule], name: str) -> str:
    """The name of the module of a layer; an error if it also holds other layers."""
    module = modules[name]
    if module.is_fused:
        layers = [layer for layer, held in modules.items() if held.name == module.name]
        raise ValueError(
            f"adapters of {name} have no place in peft's layout for this family, whose "
            f"module {module.name} holds {', '.join(layers)} in one; export it merged"
        )
    return module.name


def _target_modules(
    modules: dict[str, LinearModule], names: list[str]
) -> list[str] | str:
    """The field `target_modules`: last parts of the modules' names, or a pattern.

    Last parts are used if they select exactly the given layers.
    """
    targets = {modules[name].name for name in names}
    last = {module.name: module.name.rpartition(".")[2] for module in modules.values()}
    other_ends = {last[module] for module in last if module not in targets}
    ends = sorted({last[module] for module in targets})
    # "dense" would also match poolers.
    if len(ends) == len(targets) and not other_ends & set(ends) and "dense" not in ends:
        return ends
    patterns = (
        re.escape(module).replace(r"\{l\}", r"\d+") for module in sorted(targets)
    )
    return rf"(.*\.)?({'|'.join(patterns)})"


def _read_config(folder: Path) -> dict[str, Any]:
    """Reads adapter_config.json, and checks that it describes plain LoRA."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    fields = read_json(folder / CONFIG)
    for name in ("r", "lora_alpha"):
        check_number(folder / CONFIG, fields, name)
    if fields.get("peft_type") != "LORA":
        kind = fields.get("peft_type")
        raise ValueError(f"{folder / CONFIG} has peft_type {kind!r}; we compute LORA")
    for name, allowed in _ALLOWED.items():
        if fields.get(name) not in allowed:
            raise ValueError(
                f"{folder / CONFIG} has {name} {fields[name]!r}, which we do not "
                f"compute; allowed: {allowed[0]!r}"
            )
    return fields


def _stack_lora(
    folder: Path,
    fields: dict[str, Any],
    name: str,
    tensors: dict[tuple[int, str], np.ndarray],
    params: Params,
    cfg: EncoderConfig,
) -> Params:
    """Stacks {"a" [L, in..., r], "b" [L, r, out...], "scale" [L, 1]} of a layer.

    Args:
        folder: Folder of the adapter, for error messages.
        fields: Contents of its adapter_config.json.
        name: Name of the linear layer.
        tensors: {(block, "A" or "B"): tensor}.
        params: The encoder's parameters.
        cfg: The encoder's shape.
    """
    module = _linear_modules(cfg)[name].name
    # Expected shapes, from our kernel [L, in..., out...].
    shape = params["layers"][name]["kernel"].shape[1:]
    axes = lora.input_axes(name)
    input_shape, output_shape = shape[:axes], shape[axes:]
    rank = fields["r"]
    expected = {
        "A": (rank, int(np.prod(input_shape))),
        "B": (int(np.prod(output_shape)), rank),
    }
    # Every block must have both tensors, of these shapes.
    for layer in range(cfg.depth):
        for side, expected_shape in expected.items():
            label = f"{_PREFIX}{module.format(l=layer)}.lora_{side}.weight"
            if (layer, side) not in tensors:
                raise ValueError(f"{folder / WEIGHTS} lacks {label}")
            actual_shape = tensors[layer, side].shape
            if actual_shape != expected_shape:
                raise ValueError(
                    f"{folder / WEIGHTS}: {label} is {list(actual_shape)}, but rank "
                    f"{rank} (r of {CONFIG}) and this encoder ask for "
                    f"{list(expected_shape)}"
                )
    if len(tensors) > 2 * cfg.depth:
        deepest = max(layer for layer, _ in tensors)
        raise ValueError(
            f"{folder / WEIGHTS} has {module.format(l=deepest)}, but the encoder has "
            f"{cfg.depth} blocks"
        )
    # a: [L, in, r], b: [L, r, out].
    a, b = (
        np.stack([tensors[layer, side].T for layer in range(cfg.depth)])
        for side in "AB"
    )
    # rsLoRA (Kalajdzievski 2023) divides alpha by the square root of the rank.
    divisor = rank**0.5 if fields.get("use_rslora") else rank
    scale = fields.get("lora_alpha", 8) / divisor
    return {
        "a": a.reshape(cfg.depth, *input_shape, rank).astype(np.float32),
        "b": b.reshape(cfg.depth, rank, *output_shape).astype(np.float32),
        "scale": np.full((cfg.depth, 1), scale, np.float32),
    }
