"""What a teacher gives to batches: vectors on disk, or its own tokens of the texts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data.packing import bucket_length
from research.data.pairs.pair_cache import tokenize_pairs
from research.data.pairs.pair_rows import PairSourceState
from research.data.pairs.text_vectors import TextVectors, find_vectors
from research.data.sources import Source
from research.text.templates import Prompt


class TeacherEncoding(NamedTuple):
    """How a teacher that embeds within the step tokenizes texts.

    Attributes:
        tokenizer: Its tokenizer.
        max_length: Maximum number of tokens; longer texts are cut.
        prompts: Prefix of the texts for each role.
        prompt: Prompt template instead of these prefixes; None for none.
    """

    tokenizer: tokenizers.Tokenizer
    max_length: int
    prompts: Mapping[str, str]
    prompt: Prompt | None


class Teacher(NamedTuple):
    """A teacher of a run's batches; by default there is none.

    Attributes:
        queries: Vectors of the queries, for each of several teachers.
        documents: Vectors of the documents.
        encoding: Tokenization of a teacher that embeds within the step.
    """

    queries: tuple[TextVectors, ...] = ()
    documents: tuple[TextVectors, ...] = ()
    encoding: TeacherEncoding | None = None


def add_teacher(
    state: PairSourceState,
    source: Source,
    teacher: Teacher,
    cache: Path,
    row_length: int,
) -> PairSourceState:
    """Adds a teacher's vectors or tokens to the state of a source.

    Args:
        state: The state of the source, without rows.
        source: The source.
        teacher: The teacher.
        cache: Folder of the tokenized sources.
        row_length: Least number of tokens of the teacher's rows.

    Returns:
        The state with the vectors of the texts, and with the state of the same texts in
        the teacher's tokens, without rows.

    Raises:
        ValueError: A file lacks the vectors of some texts, or the teacher's tokenizer
            finds no tokens in one.
    """
    state = state._replace(
        query_vectors=find_vectors(teacher.queries, state.table, source, "query"),
        document_vectors=find_vectors(
            teacher.documents, state.table, source, "document"
        ),
    )
    if (encoding := teacher.encoding) is None:
        return state
    # The same examples in the same order, so that texts have the same numbers
    source = dataclasses.replace(source, prompts=encoding.prompts)
    # A teacher reads documents alone, without their contexts
    table = tokenize_pairs(
        source,
        encoding.tokenizer,
        encoding.max_length,
        cache,
        encoding.prompt,
        read_contexts=False,
    )
    longest = int(np.diff(table.starts).max())
    tokens = state._replace(
        table=table, length=bucket_length(max(row_length, longest)), clusters=None
    )
    return state._replace(teacher=tokens)
