"""Fields of a `config.json` that several families share."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.interop.hf.rope_scaling import from_hugging_face, to_hugging_face
from research.models.config import LINEAR, EncoderConfig

Fields = Mapping[str, Any]


def require(fields: Fields, **allowed: tuple) -> None:
    """Checks fields for which our encoder computes only some values.

    Args:
        fields: Fields of a config.json.
        allowed: {field: the values that it may have}. A field may also be missing.

    Raises:
        ValueError: Fields have other values; the message lists all of them.
    """
    faults = [
        f"{name} {fields[name]!r} (allowed: {', '.join(map(repr, values))})"
        for name, values in allowed.items()
        if name in fields and fields[name] not in values
    ]
    if faults:
        kind = fields.get("model_type")
        raise ValueError(
            f"config.json asks for what our {kind} encoder does not compute: "
            + "; ".join(faults)
        )


def activation(fields: Fields, name: str, default: str) -> str:
    """Our name for the activation in the field `name`."""
    value = fields.get(name, default)
    if value not in ACTS:
        raise ValueError(
            f"config.json has {name} {value!r}; allowed are {', '.join(ACTS)}"
        )
    return ACTS[value]


def bias_groups(*groups: tuple[str, bool]) -> tuple[str, ...]:
    """The groups of linear layers with biases, from pairs (names, has a bias)."""
    return tuple(
        name for names, has_bias in groups if has_bias for name in names.split()
    )


def all_biases(has_bias: bool) -> tuple[str, ...]:
    """Every group of linear layers, or no group."""
    return LINEAR if has_bias else ()


def read_dropout(
    fields: Fields, hidden: str, attention: str, default: tuple[float, float]
) -> dict[str, float | None]:
    """Dropout rates of hidden states and attention weights; None for an equal one.

    Args:
        fields: Fields of a config.json.
        hidden: Name of the field for the outputs of sublayers.
        attention: Name of the field for attention weights.
        default: Both rates where the fields are missing.
    """
    rate = float(fields.get(hidden, default[0]))
    attention_rate = float(fields.get(attention, default[1]))
    same = rate == attention_rate
    return {"dropout": rate, "attention_dropout": None if same else attention_rate}


def read_rope(fields: Fields, *, theta: float = 10_000.0, max_len: int) -> dict:
    """The RoPE fields of an EncoderConfig, and its `max_len`.

    Args:
        fields: Fields with `rope_parameters` of transformers v5, or `rope_theta` and
            `rope_scaling` of v4.
        theta: The family's RoPE base, if the fields have none.
        max_len: The family's maximum length, if the fields have none.
    """
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    rope = {"rope_theta": fields.get("rope_theta") or theta, **rope}
    return _read_rope(fields, rope, max_len)


def write_rope(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_rope`, for transformers v4 and v5."""
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


def read_local_rope(
    fields: Fields,
    *,
    old_names: tuple[str, str],
    thetas: tuple[float, float],
    max_len: int,
) -> dict[str, Any]:
    """The RoPE fields of a family whose sliding-window blocks have their own base.

    Args:
        fields: Fields with `rope_parameters` for each kind of block (transformers v5),
            or the bases of v4.
        old_names: The names in v4 for the bases of global and of local blocks.
        thetas: The family's bases, if the fields have none.
        max_len: The family's maximum length, if the fields have none.
    """
    # Bases by their names in v4, which the parameters of v5 override.
    theta, local_theta = (
        fields.get(name) or default
        for name, default in zip(old_names, thetas, strict=True)
    )
    rope = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or {}
    global_rope = {"rope_theta": theta, **scaling, **(rope.get(GLOBAL) or {})}
    local_rope = {"rope_theta": local_theta, **(rope.get(LOCAL) or {})}
    # Blocks with a sliding window must have no RoPE scaling.
    require(local_rope, rope_type=("default",), partial_rotary_factor=(1.0, None))
    return {
        **_read_rope(fields, global_rope, max_len),
        "rope_theta_local": float(local_rope["rope_theta"]),
    }


def write_local_rope(
    cfg: EncoderConfig, *, old_names: tuple[str, str]
) -> dict[str, Any]:
    """The inverse of `read_local_rope`."""
    global_rope = write_rope(cfg)
    local_rope = {"rope_theta": cfg.rope_theta_local, "rope_type": "default"}
    return {
        **global_rope,
        "rope_parameters": {
            GLOBAL: global_rope["rope_parameters"],
            LOCAL: local_rope,
        },
        old_names[0]: cfg.rope_theta,
        old_names[1]: cfg.rope_theta_local,
    }


def _read_rope(fields: Fields, rope: Fields, max_len: int) -> dict[str, Any]:
    """The RoPE fields of an EncoderConfig, from those of global blocks."""
    max_len = fields.get("max_position_embeddings", max_len)
    if original := fields.get("original_max_position_embeddings"):
        rope = {**rope, "original_max_position_embeddings": original}
    position_methods = from_hugging_face(rope, max_len)
    partial = "partial_rotary_factor"
    if not any(partial in method.hf_fields.values() for method in position_methods):
        require(rope, partial_rotary_factor=(1.0, None))
    for method in position_methods:
        max_len = method.max_len_from_hugging_face(max_len)
    return {
        "position": "rope",
        "rope_theta": float(rope["rope_theta"]),
        "position_methods": position_methods,
        "max_len": max_len,
    }


def local_blocks(
    fields: Fields, default: Sequence[bool], window: int | None
) -> dict[str, Any]:
    """The blocks with a sliding window, and the window.

    Args:
        fields: Fields of a config.json, which may have `layer_types`.
        default: Whether each block is local, if the fields do not say.
        window: Number of tokens that are visible to each side; None if no block is
            local.
    """
    kinds = fields.get("layer_types")
    is_local = [kind == LOCAL for kind in kinds] if kinds else list(default)
    unknown = sorted(set(kinds or ()) - set(BLOCKS))
    require({"layer_types": unknown}, layer_types=([],))
    if window is None or not any(is_local):
        return {}
    return {"sliding_window_layers": tuple(is_local), "window": window}


def layer_types(cfg: EncoderConfig) -> list[str]:
    """The kind of each block; the inverse of `local_blocks`."""
    is_local = cfg.sliding_window_layers or (False,) * cfg.depth
    return [LOCAL if local else GLOBAL for local in is_local]


def write_global_period(name: str, cfg: EncoderConfig, shift: int) -> dict[str, int]:
    """The field of the period n with which blocks have global attention.

    It repeats `layer_types` for text-embeddings-inference, which requires it.

    Args:
        name: The field.
        cfg: The encoder.
        shift: Block i has global attention if i + shift is a multiple of n.

    Returns:
        {name: n}; {} for windows that have no period.
    """
    is_local = list(cfg.sliding_window_layers or (False,) * cfg.depth)
    for period in range(1, cfg.depth + 2):
        if is_local == [(i + shift) % period > 0 for i in range(cfg.depth)]:
            return {name: period}
    return {}


def write_causality(cfg: EncoderConfig) -> dict[str, bool]:
    """The field that switches the causal mask off; none for a causal decoder."""
    return {} if cfg.causal else {"is_causal": False}


# {activation in `transformers`: our name}
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
# The kinds of blocks that `layer_types` may have.
GLOBAL, LOCAL = BLOCKS = ("full_attention", "sliding_attention")
# An encoder does not generate text, and the tokenizer has the ids of special tokens.
UNUSED_FIELDS = {
    "use_cache": False,
    "initializer_range": 0.02,  # text-embeddings-inference requires it
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
