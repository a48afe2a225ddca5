"""What families read and write alike in a `config.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.interop.hf.rope_scaling import from_hugging_face, to_hugging_face
from research.models.config import LINEAR, EncoderConfig

Fields = Mapping[str, Any]


def require(fields: Fields, **allowed: tuple) -> None:
    """Checks fields whose other values our encoder does not compute.

    Args:
        fields: of a config.json.
        allowed: for each field the values that it may have; it may also be missing.
    Raises:
        ValueError: names every field that has another value.
    """
    wrong = [
        f"{name} {fields[name]!r} (allowed: {', '.join(map(repr, values))})"
        for name, values in allowed.items()
        if name in fields and fields[name] not in values
    ]
    if wrong:
        kind = fields.get("model_type")
        raise ValueError(
            f"config.json asks for what our {kind} encoder does not compute: "
            + "; ".join(wrong)
        )


def activation(fields: Fields, name: str, default: str) -> str:
    """Our name of the activation in the field `name`."""
    value = fields.get(name, default)
    if value not in ACTS:
        raise ValueError(
            f"config.json has {name} {value!r}; allowed are {', '.join(ACTS)}"
        )
    return ACTS[value]


def biases(*groups: tuple[str, bool]) -> tuple[str, ...]:
    """The groups of linear layers, of (name, whether it has biases), that have them."""
    return tuple(group for name, there in groups if there for group in name.split())


def all_or_none(there: bool) -> tuple[str, ...]:
    """Every group of linear layers, or no group."""
    return LINEAR if there else ()


def rotary(fields: Fields, *, theta: float = 10_000.0, reach: int) -> dict[str, Any]:
    """The rotary fields of an EncoderConfig, and its `max_len`.

    Args:
        fields: with v5's `rope_parameters`, or v4's `rope_theta` and `rope_scaling`.
        theta: the family's base, where the fields have none.
        reach: the family's longest text, where the fields do not say it.
    """
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    rope = {"rope_theta": fields.get("rope_theta") or theta, **rope}
    return _rotary(fields, rope, reach)


def write_rotary(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `rotary`, for transformers v4 and v5."""
    rope = to_hugging_face(cfg.position_methods)
    max_positions = cfg.max_len
    for method in cfg.position_methods:
        max_positions = method.max_len_to_hugging_face(max_positions)
    return {
        "max_position_embeddings": max_positions,
        "rope_parameters": {"rope_theta": cfg.rope_theta, **rope},
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope if cfg.position_methods else None,
    }


def two_rotaries(
    fields: Fields, *, old: tuple[str, str], thetas: tuple[float, float], reach: int
) -> dict[str, Any]:
    """As `rotary`, of a family whose local blocks have their own base.

    Args:
        fields: with v5's `rope_parameters` for each kind of block, or v4's bases.
        old: v4's names of the base of global and of local blocks.
        thetas: the family's, where the fields have none.
        reach: as of `rotary`.
    """
    rope = fields.get("rope_parameters") or {}
    given = [fields.get(name) or theta for name, theta in zip(old, thetas, strict=True)]
    scaling = fields.get("rope_scaling") or {}
    whole = {"rope_theta": given[0], **scaling, **(rope.get(GLOBAL) or {})}
    local = {"rope_theta": given[1], **(rope.get(LOCAL) or {})}
    require(local, rope_type=("default",), partial_rotary_factor=(1.0, None))
    theta = float(local["rope_theta"])
    return {**_rotary(fields, whole, reach), "rope_theta_local": theta}


def write_two_rotaries(cfg: EncoderConfig, *, old: tuple[str, str]) -> dict[str, Any]:
    """The inverse of `two_rotaries`."""
    whole = write_rotary(cfg)
    local = {"rope_theta": cfg.rope_theta_local, "rope_type": "default"}
    return {
        **whole,
        "rope_parameters": {GLOBAL: whole["rope_parameters"], LOCAL: local},
        old[0]: cfg.rope_theta,
        old[1]: cfg.rope_theta_local,
    }


def _rotary(fields: Fields, rope: Fields, reach: int) -> dict[str, Any]:
    """The rotary fields of an EncoderConfig, from those of global blocks."""
    reach = fields.get("max_position_embeddings", reach)
    if original := fields.get("original_max_position_embeddings"):
        rope = {**rope, "original_max_position_embeddings": original}
    methods = from_hugging_face(rope, reach)
    partial = "partial_rotary_factor"
    if not any(partial in method.hf_fields.values() for method in methods):
        require(rope, partial_rotary_factor=(1.0, None))
    for method in methods:
        reach = method.max_len_from_hugging_face(reach)
    return {
        "position": "rope",
        "rope_theta": float(rope["rope_theta"]),
        "position_methods": methods,
        "max_len": reach,
    }


def local_blocks(
    fields: Fields, default: Sequence[bool], reach: int | None
) -> dict[str, Any]:
    """Which blocks are local, and their window.

    Args:
        fields: perhaps with `layer_types`.
        default: for each block whether it is local, where the fields do not say it.
        reach: tokens to each side; None where no block is local.
    """
    kinds = fields.get("layer_types")
    local = [kind == LOCAL for kind in kinds] if kinds else list(default)
    require({"layer_types": sorted(set(kinds or ()) - set(BLOCKS))}, layer_types=([],))
    if reach is None or not any(local):
        return {}
    return {"sliding_window_layers": tuple(local), "window": reach}


def layer_types(cfg: EncoderConfig) -> list[str]:
    """The inverse of `local_blocks`: the kind of each block."""
    local = cfg.sliding_window_layers or (False,) * cfg.depth
    return [LOCAL if flag else GLOBAL for flag in local]


def causality(cfg: EncoderConfig) -> dict[str, bool]:
    """Nothing for a causal decoder; else what switches its mask off."""
    return {} if cfg.causal else {"is_causal": False}


ACTS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
HF_ACTS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu": "relu",
}
# The kinds of blocks in `layer_types`.
GLOBAL, LOCAL = BLOCKS = ("full_attention", "sliding_attention")
# Nothing is generated, and the ids of special tokens are the tokenizer's business.
SPECIAL = {
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
