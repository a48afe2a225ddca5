"""Vectors on disk with the hashes of their texts, by which a teacher's are found."""

import re
from pathlib import Path

import numpy as np

from research.inference.index.shard_files import get_ids_path, read_rows
from research.inference.index.vector_shards import (
    ShardedVectors,
    list_shards,
    read_manifest,
    read_transform,
)


def read_hashed_vectors(path: Path) -> tuple[np.ndarray, ShardedVectors]:
    """The hashes [N, 2] uint32 of texts, and their vectors, of a file or a folder.

    Args:
        path: A .npy file or a folder that `write_shard` or `embed_to_shards` made.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds chunks, is damaged, or its lines do not fit its vectors.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    paths, transform = [path], None
    if path.is_dir():
        paths = list_shards(path, read_manifest(path))
        transform = read_transform(path)
    # Parquet files hold the ids themselves
    files = [get_ids_path(p) for p in paths if p.suffix == ".npy"]
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{path} has no {missing[0].name}, which launch.embed writes beside vectors"
        )
    texts = [row.get("hash") for shard in paths for row in read_rows(shard)]
    vectors = ShardedVectors(paths, transform and transform.quantizer)
    if len(texts) != len(vectors) or not all(texts):
        raise ValueError(
            f"{path} holds {len(vectors)} vectors and the hashes of "
            f"{sum(map(bool, texts))} texts; a teacher's texts are not cut into chunks"
        )
    if damaged := [text for text in texts if not re.fullmatch("[0-9a-f]{16}", text)]:
        raise ValueError(
            f"{path}: {damaged[0]!r} is no hash of a text, which launch.embed writes"
        )
    halves = [(int(text[:8], 16), int(text[8:], 16)) for text in texts]
    return np.array(halves, np.uint32).reshape(-1, 2), vectors
