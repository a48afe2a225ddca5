"""Embedders of launch.evaluate: of sizes, chunkings, stored vectors, joined models."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from launch import flags as options
from launch import main as cli
from launch.embed_folder import read_folder_transform
from launch.evaluate_kinds import check_dense
from research.data.chunks import read_passages
from research.data.corpus import describe_corpus, find_corpus
from research.eval import compare_chunking, grid
from research.inference.embed_kinds import join_embeddings
from research.inference.embedder import Embedder
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.vector_shards import (
    check_manifest,
    read_manifest,
    read_vectors,
)
from research.inference.model import EmbeddingModel
from research.inference.shares import split_over_processes
from research.inference.tokenize import TokenizedTexts, tokenize_in_context
from research.text.chunking import Chunking, parse_chunking
from research.types import EmbedFn, Evaluator

JOIN = flags.DEFINE_multi_string(
    "join",
    [],
    "Another model, whose similarity of two texts is added to that of --model, such as "
    "the one of chunks alone for SitEmb. The options of --model hold for it, too. The "
    "flag may be repeated.",
)
JOIN_CHUNK = flags.DEFINE_string(
    "join_chunk",
    None,
    "How the models of --join cut documents: naive(sentences=5) reads the chunks of "
    "late(sentences=5) alone. Default: as --chunk.",
)
CONTEXT = flags.DEFINE_integer(
    "context",
    0,
    "With --task=retrieval, the most characters before and after a document within "
    "which it is read, from its neighbors in --data with the same title; the models of "
    "--join read it alone. Default: all read it alone.",
    lower_bound=0,
)
# Tasks that search documents.
SEARCHES = (
    *("retrieval", "reranking", "examples", "pydocs_retrieval", "pydocs_long"),
    *("longembed", "limit"),
)


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
        embed = split_over_processes(embedder)
        return quantize_embedder(embed, embedder.model, SEARCHES[0])

    makers = {name: partial(make_embedder, chunk) for name, chunk in chunkings.items()}
    return compare_chunking.compare_chunkings(evaluator, makers, cli.log)


def score_grid(evaluator: Evaluator, model: EmbeddingModel) -> grid.Grid:
    """Scores every depth and width, from one pass over the texts."""
    options.check_plain(model, "--grid")
    options.check_no_transform("--grid")
    full, depths, dims, sizes = choose_sizes(model)

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


def choose_sizes(
    model: EmbeddingModel,
) -> tuple[EmbeddingModel, list[int], Sequence[int], dict[str, Any]]:
    """The sizes of a grid: (model of full width, depths, widths, embedder's options).

    --depth and --dim restrict the grid; widths are those of the training, if known.
    """
    sizes = options.size_options() | {"mesh": options.make_mesh(), "allow_empty": True}
    depth, dim = sizes.pop("depth", None), sizes.pop("dim", None)
    depths = [depth] if depth else list(range(1, model.config.depth + 1))
    dims = [dim] if dim else sorted(model.dims) or grid.default_dims(model.width)
    # Vectors of full width; the grid truncates them.
    return model._replace(dim=None, transform=None), depths, dims, sizes


def make_task_embedder(
    model: EmbeddingModel,
    chunk: Chunking | None,
    task: str,
    data: str | None = None,
    folder: str | None = None,
) -> EmbedFn:
    """The embedder of a task by the flags, with codes if the model has them.

    Args:
        model: The model.
        chunk: How documents are cut.
        task: The task.
        data: Its corpus.
        folder: A folder of vectors of the documents; None to embed them.
    """
    # Stored vectors come with their transform
    transform = read_folder_transform(Path(folder)) if folder else None
    embedder = options.make_embedder(
        model, chunk, allow_empty=True, transform=transform
    )
    reader = read_in_context(embedder, data, task) if CONTEXT.value else embedder
    embed = split_over_processes(reader)
    if folder:
        return make_stored_embedder(embed, Path(folder), embedder, data)
    return quantize_embedder(embed, embedder.model, task)


def read_in_context(
    embedder: Embedder, data: str | None, task: str
) -> Callable[..., Any]:
    """An embedder of documents within the text around them, as --context says.

    Args:
        embedder: The embedder of queries, and of documents alone.
        data: A BEIR folder, whose documents with the same title belong together.
        task: The task.

    Raises:
        ValueError: The task has no such folder, or a flag or the model does not go with
            it.
    """
    reader = f"--context={CONTEXT.value}"
    if task != "retrieval" or data is None or embedder.chunk is not None:
        raise ValueError(f"{reader} goes with --task=retrieval, without --chunk")
    options.check_plain(embedder.model, reader)
    passages, _ = read_passages(data, CONTEXT.value)
    # Documents as the task has them
    known = {
        f"{p.title} {p.text}".strip(): (p.text, p.around) for p in passages.values()
    }
    model, max_length = embedder.model, options.document_length(embedder.model, None)

    def embed(texts, role, *, label="text {}".format):
        if role != "document":
            return embedder(texts, role, label=label)
        # Documents without a title have nothing around them
        rows = tokenize_in_context(
            model.tokenizer,
            [known.get(text, (text, ("", ""))) for text in texts],
            prompt=model.prompts.get("document", ""),
            max_length=max_length,
            label=label,
        )
        return embedder.encode(TokenizedTexts(role, [rows], label))

    return embed


def quantize_embedder(embed: EmbedFn, model: EmbeddingModel, task: str) -> EmbedFn:
    """An embedder whose vectors are those that come back from a store of codes.

    Searches compare the queries' own vectors with the codes of documents; other tasks
    compare texts that are all stored.

    Args:
        embed: The embedder.
        model: The model, whose transform may have codes.
        task: The task.
    """
    quantizer = model.quantizer
    if quantizer is None:
        return embed

    def embed_stored(texts, role, **options):
        vectors = embed(texts, role, **options)
        # A search stores its documents alone
        if task in SEARCHES:
            return store_vectors(vectors, quantizer) if role == "document" else vectors
        return quantizer.decode(quantizer.encode(vectors))

    return embed_stored


def check_join(task: str, is_single: bool) -> None:
    """Raises ValueError if --join or --context does not go with what is asked for.

    Args:
        task: The task.
        is_single: Whether one embedder is scored on one task.
    """
    if JOIN_CHUNK.value and not JOIN.value:
        raise ValueError(f"--join_chunk={JOIN_CHUNK.value} needs --join")
    if JOIN.value:
        options.check_no_transform(f"--join={JOIN.value[0]}")
    if (JOIN.value or CONTEXT.value) and not is_single:
        flag = f"--join={JOIN.value[0]}" if JOIN.value else f"--context={CONTEXT.value}"
        raise ValueError(
            f"{flag} goes with one way to embed and a task of texts, not with "
            f"--task={task}, --grid, --compress, --vectors or several chunkings"
        )


def join_models(
    embed: EmbedFn, model: EmbeddingModel, chunk: Chunking | None, similarity: str
) -> EmbedFn:
    """The embedder of a model joined with those of --join, if there are any.

    Args:
        embed: The embedder.
        model: Its model.
        chunk: How documents are cut.
        similarity: How vectors are compared: of cosines, those of each model count.

    Raises:
        ValueError: A model does not give one vector of a text, or gives codes.
    """
    if not JOIN.value:
        return embed
    if model.quantizer is not None:
        raise ValueError(f"--join={JOIN.value[0]} does not go with codes")
    if JOIN_CHUNK.value:
        chunk = parse_chunking(JOIN_CHUNK.value)
    # The vectors of each model, as they are without a store
    check_dense(model, f"--join={JOIN.value[0]}")
    embeds = [embed]
    for name in JOIN.value:
        embedder = options.make_embedder(
            options.load_model(name), chunk, allow_empty=True
        )
        if embedder.model.kind != "dense":
            raise ValueError(f"--join={name} does not give one vector of a text")
        embeds.append(split_over_processes(embedder))

    def embed_all(texts, role, **options):
        # [N, D] of each model, side by side
        parts = [embed(texts, role, **options) for embed in embeds]
        return join_embeddings(parts, normalize=similarity == "cosine")

    return embed_all


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
