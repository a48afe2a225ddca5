"""Transforms of the vectors of tokens as text: "pool_tokens(factor=2) | muvera()".

They are applied when texts are embedded: `pool_tokens` keeps fewer vectors of a
document, `muvera` makes one vector of each text, to be compared by dot products.
"""

from collections.abc import Callable

import numpy as np

from research.config_sections import build_call, parse_calls
from research.transforms.muvera import muvera
from research.transforms.token_pooling import pool_tokens
from research.types import MultiVectors

# transform(vectors of tokens, role) -> fewer vectors, or one per text.
TokenTransform = Callable[[MultiVectors, str], "MultiVectors | np.ndarray"]


def parse_token_transform(text: str, width: int) -> TokenTransform:
    """Reads a transform of vectors of some width.

    Args:
        text: "pool_tokens(factor=2)", "muvera()", or the two with | between them; ""
            for nothing.
        width: D, the width of the vectors.

    Raises:
        ValueError: A name or an argument is unknown, or muvera does not come last.
    """
    calls = parse_calls(text) if text else []
    if "muvera" in [call.name for call in calls[:-1]]:
        raise ValueError(f"{text!r}: muvera makes one vector, so that it comes last")
    # Each step is a function of the vectors and the role
    steps = [build_call(TOKEN_TRANSFORMS, call, width) for call in calls]

    def transform(texts: MultiVectors, role: str):
        for step in steps:
            texts = step(texts, role)
        return texts

    return transform


def has_one_vector(text: str) -> bool:
    """Whether a transform makes one vector of each text."""
    return bool(text) and parse_calls(text)[-1].name == "muvera"


def make_token_pooling(
    width: int, factor: float = 2.0, protected: int = 1
) -> TokenTransform:
    """Token pooling of documents; queries keep all vectors.

    Args:
        width: Ignored: vectors may have any width.
        factor: Number of vectors that become one, on average.
        protected: Number of first vectors that stay as they are.
    """
    del width

    def pool_documents(texts: MultiVectors, role: str) -> MultiVectors:
        if role == "query":
            return texts
        return pool_tokens(texts, factor=factor, protected=protected)

    return pool_documents


def make_muvera(
    width: int,
    repetitions: int = 20,
    planes: int = 4,
    projection: int = 16,
    dim: int = 0,
    seed: int = 0,
) -> TokenTransform:
    """Fixed dimensional encodings; arguments as in `muvera`."""
    encoding = muvera(
        width,
        repetitions=repetitions,
        planes=planes,
        projection=projection,
        dim=dim,
        seed=seed,
    )

    def encode(texts: MultiVectors, role: str) -> np.ndarray:
        return encoding.encode(texts, is_query=role == "query")

    return encode


def keep_first(width: int, queries: int = 16, documents: int = 64) -> TokenTransform:
    """The first vectors of each text, such as one of MetaEmbed's groups.

    Args:
        width: Ignored: vectors may have any width.
        queries: Most vectors of a query.
        documents: Most vectors of a document.

    Raises:
        ValueError: A number is below 1.
    """
    del width
    if min(queries, documents) < 1:
        raise ValueError(f"keep_first({queries}, {documents}) leaves no vector")

    def keep(texts: MultiVectors, role: str) -> MultiVectors:
        most = queries if role == "query" else documents
        lengths = np.diff(texts.offsets)
        # The number of each vector in its text
        places = np.arange(texts.offsets[-1]) - np.repeat(texts.offsets[:-1], lengths)
        # [N + 1] where the vectors of each text then begin
        offsets = np.cumsum([0, *np.minimum(lengths, most)])
        ids = None if texts.token_ids is None else texts.token_ids[places < most]
        return MultiVectors(texts.vectors[places < most], offsets, token_ids=ids)

    return keep


TOKEN_TRANSFORMS: dict[str, Callable[..., TokenTransform]] = {
    "pool_tokens": make_token_pooling,
    "keep_first": keep_first,
    "muvera": make_muvera,
}
