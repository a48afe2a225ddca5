"""The texts of a packed batch as columns of token ids, as PyTorch's side reads them."""

import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.types import Batch, max_segments


def unpack_texts(batch: Batch) -> list[list[np.ndarray]]:
    """Token ids of a packed batch's texts: K+1 columns of B texts each."""
    token_ids, segment_ids = batch.tokens.token_ids, batch.tokens.segment_ids
    size = max_segments(token_ids.shape[1])

    # The index of a text is row * size + its number in the row, see `Batch`.
    def read_text(index):
        row, number = divmod(int(index), size)
        return token_ids[row][segment_ids[row] == number + 1]

    # Documents are stored query by query: column k holds the k-th of each query.
    docs_per_query = len(batch.document_index) // len(batch.query_index)
    documents = [batch.document_index[k::docs_per_query] for k in range(docs_per_query)]
    return [list(map(read_text, column)) for column in (batch.query_index, *documents)]


def save_columns(folder: Path, name: str, columns: Sequence) -> None:
    """Saves the texts of some batches, as token ids, for the PyTorch side."""
    path = folder / f"{name}.pickle"
    draft = path.with_suffix(f".{threading.get_ident()}")
    draft.write_bytes(pickle.dumps(columns))
    draft.replace(path)


def load_columns(folder: Path, name: str) -> list:
    """The texts of some batches: a list of batches of K+1 columns of token ids.

    Raises:
        FileNotFoundError: The part that saves them has not run.
    """
    return pickle.loads((folder / f"{name}.pickle").read_bytes())


def count_tokens(columns: Sequence[Sequence[np.ndarray]]) -> int:
    """Number of tokens in the columns of a batch."""
    return sum(len(text) for column in columns for text in column)


def useful_flops(
    shape: Mapping[str, Any], columns: Sequence[Sequence[np.ndarray]]
) -> float:
    """Floating-point operations of a training step that no program can avoid.

    Three times the forward pass of every token through the blocks, without padding,
    pairs of tokens of different texts, or the loss: for an encoder without gates.
    """
    lengths = np.array([len(text) for column in columns for text in column])
    width, mlp = shape["width"], shape["mlp"]
    per_token = 2 * (4 * width * width + 2 * width * mlp)
    attention = 4 * width * (lengths.astype(float) ** 2).sum()
    return 3 * shape["depth"] * (per_token * lengths.sum() + attention)
