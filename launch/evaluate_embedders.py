"""Embedders of launch.evaluate: of all sizes, of chunkings, of stored vectors."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from launch import flags as options
from launch import main as cli
from research.data.corpus import describe_corpus, find_corpus
from research.eval import compare_chunking, grid
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.inference.shares import split_over_processes
from research.inference.vector_shards import (
    check_manifest,
    read_manifest,
    read_vectors,
)
from research.text.chunking import Chunking
from research.types import EmbedFn, Evaluator


def build_for_model(
    build: Callable[[str], Any], similarity: str, model_name: str
) -> Any:
    """Builds evaluators that compare vectors as a model is meant to.

    Args:
        build: Function of a similarity, which has built them with cosines before.
        similarity: The model's.
        model_name: Its name.

    Raises:
        ValueError: A task has no such similarity.
    """
    try:
        return build(similarity)
    except ValueError as error:
        raise ValueError(
            f"{error}; {model_name} is meant for {similarity}: give --similarity=cosine"
        ) from None


def compare_chunkings(
    evaluator: Evaluator,
    model: EmbeddingModel,
    chunkings: Mapping[str, Chunking | None],
) -> list:
    """The scores of each chunking, for `research.eval.compare_chunking`."""

    def make_embedder(chunk):
        embedder = options.make_embedder(model, chunk, allow_empty=True)
        return split_over_processes(embedder)

    makers = {name: partial(make_embedder, chunk) for name, chunk in chunkings.items()}
    return compare_chunking.compare_chunkings(evaluator, makers, cli.log)


def score_grid(evaluator: Evaluator, model: EmbeddingModel) -> grid.Grid:
    """Scores every depth and width, from one pass over the texts."""
    options.check_plain(model, "--grid")
    sizes = options.size_options() | {"mesh": options.make_mesh(), "allow_empty": True}
    # --depth and --dim restrict the grid; widths are those of the training, if known.
    depth, dim = sizes.pop("depth", None), sizes.pop("dim", None)
    depths = [depth] if depth else list(range(1, model.config.depth + 1))
    dims = [dim] if dim else sorted(model.dims) or grid.default_dims(model.width)
    # Vectors of full width; the grid truncates them.
    full = model._replace(dim=None)

    def make_cut_embedder(depth):
        cli.log(f"measuring the speed of depth {depth}")
        return Embedder(full, depth=depth, **sizes)

    embedder = Embedder(full, depths=depths, normalize=False, **sizes)
    return grid.score_grid(
        evaluator,
        split_over_processes(embedder),
        make_cut_embedder,
        depths=depths,
        dims=dims,
        normalize=model.normalize,
    )


def make_stored_embedder(
    embed: EmbedFn, folder: Path, embedder: Embedder, data: str
) -> EmbedFn:
    """An embedder of queries, with the vectors of a folder for the documents.

    Args:
        embed: The embedder of queries.
        folder: The folder that launch.embed wrote.
        embedder: What the documents would be embedded with.
        data: The corpus of the task.

    Raises:
        ValueError: They are of another corpus, model or option.
    """
    manifest = read_manifest(folder)
    check_manifest(folder, {"role": "document"} | options.describe_embedder(embedder))
    # The corpus of the task, wherever it was when it was embedded.
    (data,) = describe_corpus(find_corpus([data]), allow_blank=True)
    if [file["digest"] for file in manifest["files"]] != [data["digest"]]:
        raise ValueError(f"{folder} holds the vectors of other texts than {data}")
    documents = read_vectors(folder)

    def embed_queries(texts, role):
        if role != "document":
            return embed(texts, role)
        if len(texts) != manifest["texts"]:
            raise ValueError(f"{data} has two documents of one id")
        return documents

    return embed_queries
