"""One adapter of an encoder <-> a folder in the layout of Hugging Face's `peft`.

adapter_config.json says rank, alpha and which modules; adapter_model.safetensors holds
`base_model.model.<module>.lora_A.weight` [r, in] and `lora_B.weight` [out, r] of each.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from research.atomic_write import atomic_write
from research.inference.model import EmbeddingModel
from research.interop.hf.families import family_of
from research.interop.hf.safetensors import canonical, save_tensors
from research.interop.hf.weight_names import ROWS
from research.models import lora as adapters
from research.models.config import EncoderConfig
from research.models.layers import LINEAR_LAYERS
from research.models.lora import LORA_LEAVES, partition
from research.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.(?:default\.)?weight")
# What changes the arithmetic or the parameters, and its values that change nothing.
_PLAIN = {
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


def write_adapter(
    folder: Path, params: Params, cfg: EncoderConfig, *, base: str = ""
) -> None:
    """Writes the one adapter of an encoder.

    Args:
        folder: is there.
        params: the encoder's, with one adapter.
        cfg: its shape.
        base: the name of the model that the adapter belongs to.

    Raises:
        ValueError: no Hugging Face family computes the encoder, or its file holds
            several of our layers in one.
        OSError: no space, or no right to write.
    """
    layers = {n: x["lora"] for n, x in params["layers"].items() if "lora" in x}
    modules, tensors = _modules(cfg), {}
    for name, lora in layers.items():
        module = _alone(modules, name)
        a, b = np.asarray(lora["a"], np.float32), np.asarray(lora["b"], np.float32)
        for layer in range(cfg.depth):
            at = _PREFIX + module.format(l=layer)
            down = a[layer].reshape(-1, a.shape[-1])
            up = b[layer].reshape(b.shape[1], -1)
            tensors[f"{at}.lora_A.weight"] = np.ascontiguousarray(down.T)
            tensors[f"{at}.lora_B.weight"] = np.ascontiguousarray(up.T)
    first = next(iter(layers.values()))
    rank, scale = first["a"].shape[-1], float(first["scale"][0, 0])
    rate = float(first["rate"][0]) if "rate" in first else 0.0
    alpha = scale * rank
    fields = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": round(rate, 6),
        "target_modules": _targets(modules, list(layers)),
        "bias": "none",
        "fan_in_fan_out": family_of(cfg) == "gpt2",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    text = json.dumps(fields, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    save_tensors(folder / WEIGHTS, tensors)


def read_adapter(folder: Path, params: Params, cfg: EncoderConfig) -> Params:
    """The encoder with the adapter of a folder beside its kernels.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        params: the encoder's, without adapters.
        cfg: its shape.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: it is not LoRA of the plain kind, or does not fit the encoder.
    """
    fields = _config(folder)
    modules = {module: name for name, (module, _) in _modules(cfg).items()}
    found: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for name, tensor in _tensors(folder).items():
        match = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        module = canonical(match[1]) if match else ""
        layer = re.search(r"\d+", module)
        general = module and re.sub(r"\d+", "{l}", module, count=1)
        if not layer or general not in modules:
            known = ", ".join(sorted(modules))
            raise ValueError(
                f"{folder / WEIGHTS} has {name}, which is no LoRA of a linear layer "
                f"of this encoder; these are {known}"
            )
        ours = _alone(_modules(cfg), modules[general]) and modules[general]
        found.setdefault(ours, {})[int(layer[0]), match[2]] = tensor
    if not found:
        raise ValueError(f"{folder / WEIGHTS} holds no tensors")
    loras = {
        name: _lora(folder, fields, name, tensors, params, cfg)
        for name, tensors in found.items()
    }
    added = {"layers": {name: {"lora": lora} for name, lora in loras.items()}}
    return adapters.combine(params, added)


def _modules(cfg: EncoderConfig) -> dict[str, tuple[str, bool]]:
    """Our linear layer -> (its module in the family, whether it is alone in it)."""
    modules = {}
    for row in ROWS[family_of(cfg)]:
        if row.gated not in (None, cfg.gated) or not row.hf.endswith(".weight"):
            continue
        for path in row.ours:
            name = path.removeprefix("layers/").removesuffix("/kernel")
            if name in LINEAR_LAYERS:
                modules[name] = row.hf.removesuffix(".weight"), len(row.ours) == 1
    return modules


def _alone(modules: dict[str, tuple[str, bool]], name: str) -> str:
    """The module of one of our layers, which holds no other."""
    module, alone = modules[name]
    if not alone:
        held = [ours for ours, (other, _) in modules.items() if other == module]
        raise ValueError(
            f"adapters of {name} have no place in peft's layout for this family, whose "
            f"module {module} holds {', '.join(held)} in one; export it merged"
        )
    return module


def _targets(modules: dict[str, tuple[str, bool]], names: list[str]) -> list[str] | str:
    """`target_modules`: last names where they say it all, else a pattern."""
    wanted = {modules[name][0] for name in names}
    last = {module: module.rpartition(".")[2] for module, _ in modules.values()}
    others = {last[module] for module in last if module not in wanted}
    ends = sorted({last[module] for module in wanted})
    # "dense" and the like would also match poolers.
    if len(ends) == len(wanted) and not others & set(ends) and "dense" not in ends:
        return ends
    patterns = (
        re.escape(module).replace(r"\{l\}", r"\d+") for module in sorted(wanted)
    )
    return rf"(.*\.)?({'|'.join(patterns)})"


def _config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, of plain LoRA."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if fields.get("peft_type") != "LORA":
        kind = fields.get("peft_type")
        raise ValueError(f"{folder / CONFIG} has peft_type {kind!r}; we compute LORA")
    for name, allowed in _PLAIN.items():
        if fields.get(name) not in allowed:
            raise ValueError(
                f"{folder / CONFIG} has {name} {fields[name]!r}, which we do not "
                f"compute; allowed: {allowed[0]!r}"
            )
    return fields


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS} is not a safetensors file: {error}"
        ) from None


def _lora(
    folder: Path,
    fields: dict[str, Any],
    name: str,
    tensors: dict[tuple[int, str], np.ndarray],
    params: Params,
    cfg: EncoderConfig,
) -> Params:
    """The a, b and scale of a linear layer, over all blocks."""
    module = _modules(cfg)[name][0]
    shape = params["layers"][name]["kernel"].shape[1:]
    axes = adapters.input_axes(name)
    before, after = shape[:axes], shape[axes:]
    rank = fields["r"]
    wanted = {
        "A": (rank, int(np.prod(before))),
        "B": (int(np.prod(after)), rank),
    }
    for layer in range(cfg.depth):
        for side, expected in wanted.items():
            label = f"{_PREFIX}{module.format(l=layer)}.lora_{side}.weight"
            if (layer, side) not in tensors:
                raise ValueError(f"{folder / WEIGHTS} lacks {label}")
            have = tensors[layer, side].shape
            if have != expected:
                raise ValueError(
                    f"{folder / WEIGHTS}: {label} is {list(have)}, but rank {rank} "
                    f"(r of {CONFIG}) and this encoder ask for {list(expected)}"
                )
    if len(tensors) > 2 * cfg.depth:
        deepest = max(layer for layer, _ in tensors)
        raise ValueError(
            f"{folder / WEIGHTS} has {module.format(l=deepest)}, but the encoder has "
            f"{cfg.depth} blocks"
        )
    a, b = (
        np.stack([tensors[layer, side].T for layer in range(cfg.depth)])
        for side in "AB"
    )
    root = rank**0.5 if fields.get("use_rslora") else rank
    scale = fields.get("lora_alpha", 8) / root
    return {
        "a": a.reshape(cfg.depth, *before, rank).astype(np.float32),
        "b": b.reshape(cfg.depth, rank, *after).astype(np.float32),
        "scale": np.full((cfg.depth, 1), scale, np.float32),
    }


def export_adapter(model: EmbeddingModel, output: Path) -> dict[str, Any]:
    """Writes the adapter of a model alone, in the layout of Hugging Face's `peft`.

    Args:
        model: has one adapter, not merged.
        output: a folder that does not exist yet, or is empty.

    Returns:
        output, adapter, rank, parameters: what was written.

    Raises:
        FileExistsError: the folder is there and not empty.
        ValueError: the model has no adapter, or several, or peft has no place for it.
        OSError: no space, or no right to write.
    """
    if len(model.adapters) != 1:
        known = ", ".join(model.adapters) or "none"
        raise ValueError(f"one adapter is exported alone; the model has {known}")
    leaves = partition(model.params, LORA_LEAVES)[0]
    with atomic_write(output, folder=True) as folder:
        write_adapter(folder, model.params, model.config, base=model.base)
    layers = leaves["layers"].values()
    return {
        "output": str(output),
        "adapter": model.adapters[0],
        "rank": next(iter(layers))["lora"]["a"].shape[-1],
        "parameters": sum(x.size for x in jax.tree.leaves(leaves)),
    }
