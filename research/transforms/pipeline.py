"""Transforms of embeddings as text, "pca(128) | int8()": parsed, fitted, kept in files.

Linear maps come first and apply to documents and queries alike, before vectors are
normalized. A quantizer, if any, comes last: it encodes the normalized vectors of
documents, while queries keep their own values.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from research.atomic_write import atomic_write, to_json
from research.config_sections import Call, bind_call, build_call, parse_calls
from research.transforms.codebooks import ProductQuantizer, fit_pq
from research.transforms.linear import (
    LinearMap,
    fit_pca,
    fit_whitening,
    make_random_projection,
)
from research.transforms.normalize import l2_normalize_rows
from research.transforms.quantization import (
    BinaryQuantizer,
    FloatQuantizer,
    PackedQuantizer,
    Quantizer,
    ScalarQuantizer,
    fit_binary,
    fit_int2,
    fit_int4,
    fit_int8,
    fit_uint8,
    make_bfloat16,
    make_float8,
    make_float16,
)

FILE = "transform.safetensors"
# {name: fit(vectors [N, D], arguments)}; linear maps, and quantizers.
LINEAR_MAPS = {
    "pca": fit_pca,
    "whitening": fit_whitening,
    "random_projection": make_random_projection,
}
QUANTIZERS = {
    "int8": fit_int8,
    "uint8": fit_uint8,
    "int4": fit_int4,
    "int2": fit_int2,
    "float16": make_float16,
    "bfloat16": make_bfloat16,
    "float8": make_float8,
    "binary": fit_binary,
    "pq": fit_pq,
}
# What a damaged file leads to, besides a ValueError.
DAMAGED = (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError)
TRANSFORMS: dict[str, Callable[..., Any]] = {**LINEAR_MAPS, **QUANTIZERS}
# The classes of fitted parts, by the name that a file has for them.
PARTS = {
    part.__name__: part
    for part in (
        *(LinearMap, ScalarQuantizer, FloatQuantizer, BinaryQuantizer),
        *(ProductQuantizer, PackedQuantizer),
    )
}


@dataclass(frozen=True)
class VectorTransform:
    """A fitted transform of embeddings.

    Attributes:
        text: What it was made from, such as "pca(128) | int8()".
        maps: Linear maps, the first one first.
        quantizer: What encodes the vectors of documents; None if nothing does.
    """

    text: str
    maps: tuple[LinearMap, ...] = ()
    quantizer: Quantizer | None = None

    def apply_maps(self, x: np.ndarray) -> np.ndarray:
        """Applies the linear maps to vectors [..., D]."""
        for linear in self.maps:
            x = linear.apply(x)
        return x

    def split_quantizer(self) -> "VectorTransform | None":
        """The transform without its linear maps; None if nothing is left."""
        if self.quantizer is None:
            return None
        text = self.text.rpartition("|")[2].strip()
        return VectorTransform(text, (), self.quantizer)

    def describe(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """The kind and settings of each part, and {"number.field": array} of all."""
        # Arrays become tensors, all else is JSON
        parts = [*self.maps, *([] if self.quantizer is None else [self.quantizer])]
        settings, tensors = [], {}
        for number, part in enumerate(parts):
            values = {field.name: getattr(part, field.name) for field in fields(part)}
            arrays = {k: x for k, x in values.items() if isinstance(x, np.ndarray)}
            plain = {k: x for k, x in values.items() if k not in arrays}
            settings.append({"kind": type(part).__name__, **plain})
            for name, array in arrays.items():
                tensors[f"{number}.{name}"] = np.ascontiguousarray(array)
        return settings, tensors


def parse_transform(text: str) -> list[Call]:
    """Reads a transform, and checks its names and arguments before anything is fitted.

    Raises:
        ValueError: A name or an argument is unknown, or a quantizer does not come last.
    """
    # The vectors are the first argument; only the others come from the text
    calls = parse_calls(text)
    for call in calls:
        bound = bind_call(TRANSFORMS, call, np.empty((0, 0)))
        for name, parameter in inspect.signature(bound).parameters.items():
            if parameter.default is parameter.empty:
                raise ValueError(f"{call.name} needs a value for {name}")
    for call in calls[:-1]:
        if call.name in QUANTIZERS:
            raise ValueError(
                f"{text!r}: {call.name} makes codes, so that it comes last"
            )
    return calls


def fit_transform(
    text: str, vectors: np.ndarray, *, normalize: bool
) -> VectorTransform:
    """Fits a transform to a sample of vectors.

    Args:
        text: Calls of TRANSFORMS with | between them.
        vectors: [N, D] vectors of documents before they are normalized; N may be 0 for
            transforms that are not fitted, such as float8.
        normalize: Whether vectors are scaled to length 1 before they are encoded.

    Raises:
        ValueError: As in `parse_transform`, or a transform does not fit the vectors.
    """
    calls, maps, quantizer = parse_transform(text), [], None
    for call in calls:
        if call.name in LINEAR_MAPS:
            maps.append(build_call(LINEAR_MAPS, call, vectors))
            vectors = maps[-1].apply(vectors)
        else:
            # Codes are of the vectors as they are stored
            unit = l2_normalize_rows(vectors) if normalize else vectors
            unit = np.asarray(unit, np.float32)
            quantizer = build_call(QUANTIZERS, call, unit)
    return VectorTransform(text, tuple(maps), quantizer)


def make_pq_transform(codebook: Mapping[str, Any] | None) -> VectorTransform | None:
    """The codes of a product quantizer that was trained with a model; None for none.

    Args:
        codebook: {"centroids": [M, 256, D / M]} and perhaps "rotation" [D, D].
    """
    if codebook is None:
        return None
    arrays = {name: np.asarray(x, np.float32) for name, x in codebook.items()}
    rotate = "" if "rotation" in arrays else ", rotate=False"
    text = f"pq({len(arrays['centroids'])}{rotate})"
    return VectorTransform(text, (), ProductQuantizer(**arrays))


def save_transform(transform: VectorTransform, file: Path) -> None:
    """Writes a transform as one safetensors file, in one atomic step."""
    parts, tensors = transform.describe()
    content = {"format": 1, "text": transform.text, "parts": parts}
    with atomic_write(file) as draft:
        draft.write_bytes(save(tensors, metadata={"transform": to_json(content)}))


def load_transform(file: Path) -> VectorTransform:
    """Reads what `save_transform` wrote.

    Raises:
        ValueError: It is no such file.
    """
    try:
        # The settings are in the metadata, the arrays are the tensors
        with safe_open(file, "np") as reader:
            content = json.loads((reader.metadata() or {})["transform"])
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        parts = [
            _make_part({**settings, **_select_tensors(tensors, number)})
            for number, settings in enumerate(content["parts"])
        ]
        transform = _join_parts(content["text"], parts)
    except DAMAGED as error:
        raise ValueError(f"{file} holds no transform: {error}") from None
    return transform


def _make_part(values: dict[str, Any]) -> Any:
    """A fitted part from its kind, settings and arrays."""
    part = PARTS[values.pop("kind")]
    required = [field.name for field in fields(part) if field.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"its {part.__name__} has no {', '.join(missing)}")
    return part(**values)


def _select_tensors(tensors: dict[str, np.ndarray], number: int) -> dict[str, Any]:
    prefix = f"{number}."
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }


def _join_parts(text: str, parts: Sequence[Any]) -> VectorTransform:
    maps = tuple(part for part in parts if isinstance(part, LinearMap))
    last = parts[-1]
    return VectorTransform(text, maps, last if isinstance(last, Quantizer) else None)
