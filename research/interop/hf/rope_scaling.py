"""RoPE scaling as Hugging Face `transformers` writes it in a `config.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.models.positions.base import PositionMethod
from research.models.positions.methods import POSITION_METHODS


def from_hugging_face(
    parameters: Mapping[str, Any], max_positions: int
) -> tuple[PositionMethod, ...]:
    """The position method that `rope_parameters` (formerly `rope_scaling`) describes.

    The base and partial rotation are not read, except for "proportional".

    Args:
        parameters: RoPE parameters for one kind of layer. If a `config.json` has
            original_max_position_embeddings at its top level (Phi-3), that overrides
            theirs and should be included.
        max_positions: The field max_position_embeddings of the `config.json`.

    Returns:
        `EncoderConfig.position_methods`: one method or none.

    Raises:
        ValueError: The rope_type is unknown, or a needed parameter is missing.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return ()
    if kind not in ROPE_TYPES:
        known = ", ".join(["default", *ROPE_TYPES])
        raise ValueError(f"rope_parameters has rope_type {kind!r}; known are {known}")
    return (ROPE_TYPES[kind].from_hugging_face(parameters, max_positions),)


def to_hugging_face(methods: Sequence[PositionMethod]) -> dict[str, Any]:
    """The inverse of `from_hugging_face`, without the base and partial rotation.

    For "dynamic", `transformers` takes the original length from
    max_position_embeddings, where the caller has to write it. For all other methods
    the original length and the scale are written here.

    Raises:
        ValueError: `transformers` has no rope_type for these methods.
    """
    if not methods:
        return {"rope_type": "default"}
    written = methods[0].to_hugging_face()
    if written is None or len(methods) > 1:
        names = ", ".join(method.name for method in methods)
        known = ", ".join(method.name for method in ROPE_TYPES.values())
        raise ValueError(
            f"transformers has no rope_type for {names}; it has one for each of "
            f"{known} (yarn without the paper's ramp)"
        )
    return written


ROPE_TYPES = {
    method.hf_type: method for method in POSITION_METHODS.values() if method.hf_type
}
