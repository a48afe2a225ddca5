"""Flag of launch.evaluate that scores transforms of embeddings: quality and bytes."""

from collections.abc import Callable
from typing import Any

from absl import flags

from launch import flags as options
from launch import main as cli
from launch.evaluate_embedders import choose_sizes
from launch.evaluate_kinds import check_dense
from research.data.corpus import read_corpus
from research.eval.compression import (
    NONE,
    CompressedScore,
    compression_study,
    default_transforms,
)
from research.eval.compression_table import format_markdown, plot_pareto, to_record
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.inference.shares import split_over_processes
from research.transforms.pipeline import parse_transform
from research.types import Evaluator

COMPRESS = flags.DEFINE_multi_string(
    "compress",
    [],
    "A transform, as --transform takes it, that is compared with float32 in quality, "
    "bytes and latency, or all for the usual ones; with --grid, at all depths and "
    "widths. It is fitted to --transform_texts, or else to the documents. The flag may "
    "be repeated.",
)
ALL = "all"
# Tasks of texts that are embedded once.
TASKS = (
    *("retrieval", "reranking", "examples", "pydocs_retrieval", "pydocs_long", "limit"),
    *("sts", "classification", "multilabel", "clustering", "pair_classification"),
    *("bitext_mining", "summarization"),
)


def check_compress(task: str, is_plain: bool) -> None:
    """Raises an error for a wrong flag, before anything is computed.

    Args:
        task: The task.
        is_plain: Whether there is neither --chunk nor --against.
    """
    if not COMPRESS.value:
        return
    if not is_plain:
        raise ValueError("--compress goes with neither --chunk nor --against")
    if task not in TASKS:
        raise ValueError(f"--compress goes with {', '.join(TASKS)}, not --task={task}")
    options.check_no_transform("--compress, which takes transforms itself")
    for text in COMPRESS.value:
        if text not in (ALL, NONE):
            parse_transform(text)


def score_compressed(
    evaluator: Evaluator, model: EmbeddingModel, *, grid: bool, similarity: str
) -> tuple[list[CompressedScore], dict[str, Any], Callable, Callable]:
    """Scores the transforms of --compress, from one pass over the texts.

    Args:
        evaluator: The evaluator of the task.
        model: The model.
        grid: Whether all depths and widths are scored.
        similarity: How searches compare vectors.

    Returns:
        The scores, their JSON, and the functions that make a table and a plot of them.
    """
    options.check_plain(model, "--compress")
    check_dense(model, "--compress")
    full, depths, dims, sizes = choose_sizes(model)
    if not grid:
        depths, dims = depths[-1:], dims[-1:]
    # The transforms of all flags, with those that "all" stands for
    transforms = []
    for text in COMPRESS.value:
        transforms += default_transforms(dims[-1]) if text == ALL else [text]
    # One pass over the texts, at all depths
    file = options.TRANSFORM_TEXTS.value
    embedder = Embedder(full, depths=depths, normalize=False, **sizes)
    rows = compression_study(
        evaluator,
        split_over_processes(embedder),
        transforms,
        depths=depths,
        dims=dims,
        normalize=model.normalize,
        similarity=similarity,
        sample=read_corpus(file)[1] if file else (),
        log=cli.log,
    )
    cli.log(f"\n{format_markdown(rows, options.MODEL.value)}")
    return rows, to_record(rows), format_markdown, plot_pareto
