"""Teachers of a run: vectors that launch.embed wrote, or a model within the step."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.config_sections import build_nothing
from research.data.pairs.clusters import hash_arrays
from research.data.pairs.teacher_texts import Teacher, TeacherEncoding
from research.data.pairs.text_vectors import TextVectors
from research.inference.index.hashed_vectors import read_hashed_vectors
from research.inference.model import EmbeddingModel
from research.interop.load import load_adapted
from research.models import encoder
from research.models.pooling.projection import Dense, project
from research.models.pooling.registry import parse_pooling
from research.objectives.frozen.teacher import add_teacher
from research.transforms.normalize import l2_normalize
from research.types import Array, Objective, Params, Tokens, max_segments

# Most vectors of a file by which a resumed run sees that it changed.
HASHED_ROWS = 1_000


class RunTeacher(NamedTuple):
    """A teacher of a run.

    Attributes:
        teacher: What it gives to batches.
        width: E, the width of its vectors.
        wrap: (objective, micro_batch) -> the objective with the teacher's vectors as
            labels; None if the batches have them.
        content_hash: Hash of the files of vectors; "" of a model, whose parameters are
            in the checkpoints.
        note: What may surprise about it, for the start of a run.
    """

    teacher: Teacher
    width: int
    wrap: Callable[[Objective, int], Objective] | None = None
    content_hash: str = ""
    note: str = ""


def read_vector_files(
    max_length: int,
    *,
    queries: str | tuple[str, ...] = (),
    documents: str | tuple[str, ...] = (),
) -> RunTeacher:
    """A teacher whose vectors of all texts launch.embed --examples wrote.

    Args:
        max_length: Ignored.
        queries: The .npy file or the folder of the queries' vectors, or several. Those
            of several teachers are normalized, concatenated and normalized again.
        documents: The same for the documents, of teachers in the same order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No file is named, or a file is damaged.
    """
    del max_length
    sides = [_read_files(paths) for paths in (queries, documents)]
    # Widths of both sides, which should be of the same teachers
    widths = [tuple(x.vectors.shape[1] for x in side) for side in sides if side]
    if not widths:
        raise ValueError("teacher names no file: set queries='FILE' or documents")
    if len(set(widths)) > 1:
        raise ValueError(
            f"the teacher's vectors of queries have {sum(widths[0])} dims, those of "
            f"documents {sum(widths[1])}"
        )
    content_hash = "".join(map(_hash_files, sides))
    return RunTeacher(Teacher(*sides), sum(widths[0]), content_hash=content_hash)


def load_frozen_model(
    max_length: int, *, model: str, length: int = 0, dtype: str = "float32"
) -> RunTeacher:
    """A model that embeds every batch within the step, and is not trained.

    Its tokenizer, width, prompts and pooling are its own. Its parameters are a part of
    every checkpoint.

    Args:
        max_length: The run's maximum number of tokens of a text.
        model: Name of the model, as `interop.load` takes it.
        length: Maximum number of tokens of the teacher's texts; 0 for that of the run.
        dtype: Data type of activations.

    Raises:
        ValueError: The model has no such length, or adapters for the roles.
    """
    loaded = load_adapted(model)
    if loaded.adapters:
        raise ValueError(
            f"{model} has an adapter for each role; a teacher has one for all texts"
        )
    if length > loaded.max_length:
        raise ValueError(
            f"teacher.length is {length}; {model} embeds texts of up to "
            f"{loaded.max_length} tokens"
        )
    prompts = {role: loaded.prompts.get(role, "") for role in ("query", "document")}
    encoding = TeacherEncoding(
        tokenizer=loaded.tokenizer,
        max_length=length or min(max_length, loaded.max_length),
        prompts={} if loaded.prompt else prompts,
        prompt=loaded.prompt,
    )
    params, embed = _make_embed(loaded, dtype)

    def wrap(objective: Objective, micro_batch: int) -> Objective:
        return add_teacher(objective, params, embed, micro_batch=micro_batch)

    # launch.embed cuts texts at the model's own length
    note = ""
    if encoding.max_length < loaded.max_length:
        note = (
            f"the teacher reads up to {encoding.max_length} of its tokens of a text; "
            f"teacher.length={loaded.max_length} is its own limit"
        )
    return RunTeacher(Teacher(encoding=encoding), loaded.width, wrap, note=note)


def _make_embed(
    model: EmbeddingModel, dtype: str
) -> tuple[Params, Callable[[Params, Tokens], Array]]:
    """A model's parameters, and (parameters, tokens [R, S]) -> its vectors [R*M, E]."""
    cfg = dataclasses.replace(model.config, dtype=dtype)
    pool = parse_pooling(model.pool)
    # Plain trees: a dense layer's activation is no array
    layers = [(layer.kernel, layer.bias) for layer in model.dense]
    dense = {
        str(i): {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        for i, (kernel, bias) in enumerate(layers)
    }
    activations = [layer.activation for layer in model.dense]

    def embed(params: Params, tokens: Tokens) -> Array:
        texts_per_row = max_segments(tokens.token_ids.shape[1])
        x = encoder.encode(
            params["encoder"], tokens, cfg, pool, max_segments=texts_per_row
        )
        # [R*M, E] after dense layers, truncation and normalization
        projections = [
            Dense(**params["dense"][str(i)], activation=activation)
            for i, activation in enumerate(activations)
        ]
        x = project(projections, x.astype(np.float32))[:, : model.dim]
        return l2_normalize(x) if model.normalize else x

    return {"encoder": model.params, "dense": dense}, embed


def _read_files(paths: str | Sequence[str]) -> tuple[TextVectors, ...]:
    """The vectors of one file, or of several."""
    return tuple(map(read_text_vectors, [paths] if isinstance(paths, str) else paths))


def _hash_files(files: Sequence[TextVectors]) -> str:
    """Hash of the texts of files of vectors, and of a sample of the vectors."""
    arrays = []
    for file in files:
        # Those of another model all differ, and a large file is not read as a whole
        rows = np.arange(0, len(file.hashes), 1 + len(file.hashes) // HASHED_ROWS)
        arrays += [file.hashes, file.vectors.take(rows, axis=0)]
    return hash_arrays(*arrays)


def read_text_vectors(path: str) -> TextVectors:
    """The vectors of a file or folder that launch.embed wrote, by their texts."""
    hashes, vectors = read_hashed_vectors(Path(path).expanduser())
    return TextVectors(path, hashes, vectors)


# Functions that a config section `teacher` can name: (max_length, *, arguments).
TEACHERS = {
    "none": build_nothing,
    "vectors": read_vector_files,
    "model": load_frozen_model,
}
