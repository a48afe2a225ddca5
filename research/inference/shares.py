"""Embedding of texts by all processes of a run, each of which embeds its share."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from research.inference.embedder import Embedder, Embeddings
from research.inference.similarity import embedding_kind
from research.types import MultiVectors

# Number of rows that the processes exchange at a time; more would only take memory.
ROWS_PER_STEP = 65_536


def split_over_processes(embedder: Embedder) -> Callable[..., Embeddings]:
    """An embedder that all processes call together, each for its share of the texts.

    Texts are dealt out by their length, so that the shares are alike. All processes get
    all embeddings, in the order of the texts. With one process, or fewer texts than
    processes, each embeds all texts.

    Args:
        embedder: Embedder on the devices of this process.
    """

    def embed(
        texts: Sequence[str],
        role: str,
        *,
        label: Callable[[int], str] = "text {}".format,
    ) -> Embeddings:
        index, processes = jax.process_index(), jax.process_count()
        if processes == 1 or len(texts) < processes:
            return embedder(texts, role, label=label)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        share = order[index::processes]
        # No process may wait for one that has found an error.
        embeddings, failure = None, None
        try:
            embeddings = embedder(
                [texts[i] for i in share], role, label=lambda i: label(int(share[i]))
            )
        except ValueError as error:
            failure = error
        if process_allgather(np.int32(failure is not None)).any():
            raise failure or ValueError("another process cannot embed its texts")
        return _gather(embeddings, share)

    return embed


def _gather(embeddings: Embeddings, share: np.ndarray) -> Embeddings:
    """The embeddings of all processes, in the order of the texts.

    Args:
        embeddings: The embeddings of this process's texts.
        share: The indices of these texts.
    """
    if embedding_kind(embeddings) == "dense":
        vectors, numbers = _gather_rows(embeddings), _gather_rows(share)
        return vectors[np.argsort(numbers)]
    if embedding_kind(embeddings) == "sparse":
        return _gather_sparse(embeddings, share)
    # Vectors of one text stay in their order.
    numbers = _gather_rows(share[embeddings.text_numbers])
    order = np.argsort(numbers, kind="stable")
    offsets = np.searchsorted(numbers[order], np.arange(numbers.max() + 2))
    vectors, *details = (
        None if values is None else _gather_rows(values)[order]
        for values in (embeddings.vectors, *embeddings[2:])
    )
    return MultiVectors(vectors, offsets, *details)


def _gather_sparse(embeddings, share: np.ndarray):
    """The rows of a SciPy CSR array of all processes, in the order of the texts."""
    from scipy.sparse import coo_array

    rows = np.repeat(share, np.diff(embeddings.indptr))
    columns = embeddings.indices.astype(np.int64)
    values, rows, columns = map(_gather_rows, (embeddings.data, rows, columns))
    shape = int(process_allgather(np.int32(len(share))).sum()), embeddings.shape[1]
    return coo_array((values, (rows, columns)), shape).tocsr()


def _gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, one process after another."""
    counts = process_allgather(np.int32(len(rows)))  # [processes]
    # JAX has no 64-bit integers by default; indices of texts and characters fit 32.
    if rows.dtype == np.int64:
        rows = rows.astype(np.int32)
    # Processes exchange blocks of one shape.
    shares = [[] for _ in counts]
    for start in range(0, counts.max(), ROWS_PER_STEP):
        size = min(ROWS_PER_STEP, counts.max() - start)
        block = rows[start : start + size]
        missing = ((0, size - len(block)), *((0, 0),) * (rows.ndim - 1))
        # [processes, size, ...]
        for share, part in zip(
            shares, process_allgather(np.pad(block, missing)), strict=True
        ):
            share.append(part)
    parts = [
        np.concatenate(share)[:count]
        for share, count in zip(shares, counts, strict=True)
    ]
    return np.concatenate(parts)
