"""Flags of launch.search for a second model, which ranks what an index has found.

Codes in memory find candidates, of which the vectors of a better model are read from
disk (BiDR, Xiao et al. 2022, arXiv:2201.05409, section 3.4).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from launch import main as cli
from launch.embed_folder import read_folder_transform
from research.inference.embedder import Embedder
from research.inference.index.quantized_vectors import rescore_candidates
from research.inference.index.vector_shards import (
    check_manifest,
    read_manifest,
    read_vectors,
)
from research.inference.model import hash_model
from research.inference.similarity import normalize_embeddings, uses_unit_vectors
from research.interop import load

RERANK_MODEL = flags.DEFINE_string(
    "rerank_model", None, "Another model, which ranks the texts that --index finds."
)
RERANK_INDEX = flags.DEFINE_string(
    "rerank_index", None, "The folder of its vectors, of the same files as --index."
)
CANDIDATES = flags.DEFINE_integer(
    "candidates", 1_000, "The number of texts that it ranks.", lower_bound=1
)
cli.group_flags("Search", RERANK_MODEL, RERANK_INDEX, CANDIDATES)


def check_rerank(index: Path | None, is_fused: bool) -> bool:
    """Whether a second model ranks the texts.

    Args:
        index: Folder of the first model's vectors; None without one.
        is_fused: Whether the ranking is fused with another one.

    Raises:
        ValueError: The flags do not go together, or the folders are of other files.
    """
    if RERANK_MODEL.value is None and RERANK_INDEX.value is None:
        return False
    if RERANK_MODEL.value is None or RERANK_INDEX.value is None:
        raise ValueError("--rerank_model and --rerank_index go together")
    if index is None or is_fused:
        other = "--corpus" if index is None else "--hybrid"
        raise ValueError(
            f"--rerank_model={RERANK_MODEL.value} goes with --index, not with {other}"
        )
    # Numbers of texts have to mean the same in both folders
    second = Path(RERANK_INDEX.value).expanduser()
    first_files, second_files = (read_manifest(x)["files"] for x in (index, second))
    if first_files != second_files:
        raise ValueError(f"{second} was made of other files than {index}")
    return True


def rerank(
    queries: Sequence[str], candidates: np.ndarray, hits: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates of each query by the second model.

    Args:
        queries: Q queries.
        candidates: [Q, n] numbers of texts; -1 for none.
        hits: Number of texts per query; at most n are returned.

    Returns:
        Scores [Q, hits] float32 from best to worst, and numbers of texts.

    Raises:
        ValueError: The folder is of another model, or has several vectors per text.
    """
    folder, name = Path(RERANK_INDEX.value).expanduser(), RERANK_MODEL.value
    transform = read_folder_transform(folder)
    embedder = Embedder(load.load(name), transform=transform)
    if embedder.kind != "dense":
        kind = embedder.kind.replace("_", "-")
        raise ValueError(
            f"--rerank_model needs one vector per text; those of {name} are {kind}"
        )
    entries = {"role": "document", "dim": embedder.width, "options": {}}
    check_manifest(folder, entries | {"weights": hash_model(embedder.model)})
    # [Q, D], and the candidates' vectors, which are read from the folder
    vectors = embedder(queries, "query")
    normalize = uses_unit_vectors(embedder.model.similarity)
    if normalize:
        (vectors,) = normalize_embeddings((vectors,))
    return rescore_candidates(
        vectors, read_vectors(folder), candidates, hits, normalize=normalize
    )
