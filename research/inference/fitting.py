"""Fits transforms to the embeddings of texts."""

from collections.abc import Sequence

import numpy as np

from research.inference.embedder import Embedder
from research.inference.shares import split_over_processes
from research.transforms.pipeline import VectorTransform, fit_transform


def fit_to_texts(
    text: str, embedder: Embedder, texts: Sequence[str], *, normalize: bool
) -> VectorTransform:
    """Fits a transform to the embeddings of texts as documents.

    Args:
        text: The transform, as `parse_transform` reads it.
        embedder: An embedder without transform, whose vectors are not normalized.
        texts: N texts, of all processes; none for a transform that is not fitted.
        normalize: Whether vectors are normalized before they are encoded.

    Raises:
        ValueError: As in `fit_transform`, or a text cannot be embedded.
    """
    vectors = np.empty((0, embedder.width), np.float32)  # [N, D]
    if len(texts):
        vectors = split_over_processes(embedder)(texts, "document")
        # Of documents in chunks, those of the chunks
        vectors = getattr(vectors, "vectors", vectors)
    return fit_transform(text, vectors, normalize=normalize)
