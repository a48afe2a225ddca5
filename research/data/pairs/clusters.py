"""Clusters of a source's examples, within which its batches are drawn."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.data import token_cache
from research.data.pairs.pair_cache import PairTable
from research.data.pairs.text_vectors import TextVectors, find_vectors
from research.data.sources import Source
from research.transforms.clustering import cluster_pairs


def cluster_examples(
    source: Source, table: PairTable, files: Sequence[TextVectors], cache: Path
) -> np.ndarray:
    """[n] int32 the cluster of each example, from the cache or computed first.

    Args:
        source: The source.
        table: Its texts.
        files: Vectors of the queries, and of the documents, of which those of the first
            positives are used; or of the queries alone.
        cache: Folder of clusters that were computed before.

    Raises:
        ValueError: A file lacks some of the texts, or has vectors of another width than
            the other or that are not finite.
    """
    # [n, D] vectors of the queries, and of their first positives
    arrays = []
    for file, role, numbers in zip(
        files,
        ("query", "document"),
        (table.query_text, table.query_text + 1),
        strict=False,
    ):
        vectors = find_vectors([file], table, source, role).take_texts(numbers)
        if not np.isfinite(vectors).all():
            raise ValueError(f"{file.path} has vectors that are not finite")
        arrays.append(vectors)
    if len({array.shape for array in arrays}) > 1:
        widths = " and ".join(str(array.shape[1]) for array in arrays)
        raise ValueError(f"the vectors of the clusters have {widths} dims")

    def write(folder: Path) -> None:
        clusters = cluster_pairs(*arrays, cluster_size=source.cluster_size)
        np.save(folder / "clusters.npy", clusters)

    # Other vectors are another folder
    digest = hash_arrays(*arrays)
    folder = token_cache.write_once(
        cache, f"clusters_{digest}_{source.cluster_size}", write
    )
    return np.load(folder / "clusters.npy")


def hash_arrays(*arrays: np.ndarray) -> str:
    """Hash of the values of some arrays."""
    digest = hashlib.blake2b(digest_size=10)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1))
    return digest.hexdigest()
