"""Reads ColBERT models as Stanford's code writes them, with artifact.metadata."""

import string
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.atomic_write import read_json
from research.interop.hf.tensor_files import list_tensors, read_tensor
from research.interop.json_files import check_number
from research.interop.sentence_transformers.read import Modules
from research.models.pooling.projection import Dense

METADATA = "artifact.metadata"
PROJECTION = "linear.weight"


class TokenModules(NamedTuple):
    """What a folder of a vector per token has besides a transformer and Dense layers.

    Attributes:
        modules: Its modules, as those of a model of one vector per text.
        query_length: Most tokens of a query; 0 for the maximum of a text.
        document_length: Most tokens of a document; 0 for the maximum of a text.
        expansion: Token that lengthens queries; "" for none, None for the tokenizer's
            mask token.
        attends: Whether tokens attend to it.
        skiplist: Tokens of documents that are not scored.
    """

    modules: Modules
    query_length: int
    document_length: int
    expansion: str | None
    attends: bool
    skiplist: tuple[str, ...]


def read_stanford(path: Path) -> TokenModules:
    """Reads a folder of a transformer with a projection beside its weights.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The metadata lacks an entry, or there is no projection.
    """
    file = path / METADATA
    fields = read_json(file)
    # Numbers of tokens of queries and documents
    lengths = {}
    for name in ("query_maxlen", "doc_maxlen"):
        lengths[name] = check_number(file, fields, name)
        if not lengths[name]:
            raise ValueError(f"{file} has no {name}")
    # The projection [d, D], which PyTorch multiplies from the left
    stored = [t for t in list_tensors(path) if t.name == PROJECTION]
    if not stored:
        raise ValueError(f"the weights in {path} have no {PROJECTION}")
    kernel = np.ascontiguousarray(np.asarray(read_tensor(stored[0]), np.float32).T)
    modules = Modules(
        transformer=path,
        max_length=None,
        lower_case=False,
        tokenizer_fields={},
        config_fields={},
        pool="colbert(dim=0)",
        # Markers, which are tokens of the vocabulary
        prompts={
            "query": fields.get("query_token_id") or "[unused0]",
            "document": fields.get("doc_token_id") or "[unused1]",
        },
        default_prompt="",
        similarity="maxsim",
        normalize=True,
        dense=(Dense(kernel),),
        dim=None,
    )
    # Punctuation in documents is not scored, unless the metadata says so
    skips = fields.get("mask_punctuation", True)
    return TokenModules(
        modules,
        query_length=lengths["query_maxlen"],
        document_length=lengths["doc_maxlen"],
        expansion=None,
        attends=bool(fields.get("attend_to_mask_tokens")),
        skiplist=tuple(string.punctuation) if skips else (),
    )
