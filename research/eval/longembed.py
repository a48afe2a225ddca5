"""LongEmbed: retrieval from long documents, at each document length.

Zhu et al. 2024, "LongEmbed: Extending Embedding Models for Long Context Retrieval"
(arXiv:2404.12096).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from research.eval.figures import figure
from research.eval.needle_tasks import (
    RetrievalTask,
    filler_words,
    needle,
    passkey,
    read_words,
)
from research.eval.tables import markdown_page
from research.eval.tasks.retrieval import retrieval
from research.inference.search import rank_documents
from research.types import EmbedFn, Evaluator

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
TASKS = ("passkey", "needle")


def longembed(
    *,
    tasks: tuple[str, ...] = TASKS,
    lengths: tuple[int, ...] = LENGTHS,
    data: str = "",
    split: str = "test",
    text: str = "",
    seed: int = 0,
    similarity: str = "cosine",
) -> Evaluator:
    """The synthetic tasks of LongEmbed and, with `data`, one retrieval data set.

    Documents longer than the model's maximum length are truncated, as in the paper.
    There, an encoder of 512 tokens finds 100, 100, 62, 22, 14, 4, 4 and 2 % of the
    passkeys at the eight lengths: those within its first 512 tokens. The first 512
    tokens of BERT's tokenizer hold 100, 100, 42, 32 and 18 % of those of seed 0. The
    real data sets of LongEmbed are the LEMB* tasks of mteb; see `interop/mteb.py`.

    Args:
        tasks: Synthetic tasks, "passkey" and "needle"; may be empty if there is `data`.
        lengths: Nominal lengths of the synthetic documents in tokens, at 0.75 words per
            token.
        data: A BEIR folder, which is one more task; empty for none.
        split: Name of the file in the folder's qrels/, without its ending.
        text: File or folder of texts to hide needles in; empty for the docstrings of
            the installed Python packages.
        seed: int of the synthetic tasks.
        similarity: "cosine", or "dot" for dot products of the model's vectors.

    Returns:
        embed -> {"main_score", "passkey", "passkey_256", ..., "FOLDER_ndcg@10"} in
        percent: Acc@1 at each length and its mean over lengths; nDCG@10 for the data
        set. The main score is the mean over tasks.

    Raises:
        ValueError: A task is unknown, a length too short, or the text too short.
        FileNotFoundError: A file or folder is missing.
    """
    if not (tasks or data):
        raise ValueError("longembed has neither a task nor the data of one")
    # The data are made and read here, once for all calls of the evaluator.
    synthetic = _synthetic_tasks(tasks, lengths, text, seed)
    folder_evaluator = None
    if data:
        folder_evaluator = retrieval(data=data, split=split, similarity=similarity)
    accuracy = partial(top1_accuracy, similarity=similarity)
    folder_score = f"{Path(data).expanduser().resolve().name}_ndcg@10"

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        # Acc@1 of each task and length.
        scores = {name: accuracy(embed, *task) for name, task in synthetic.items()}
        # The mean of each task over lengths.
        means = {
            task: float(np.mean(list(by_length.values())))
            for task, by_length in scores_by_length(scores).items()
        }
        if folder_evaluator is not None:
            means[folder_score] = folder_evaluator(embed)["ndcg@10"]
        return {"main_score": float(np.mean(list(means.values()))), **means, **scores}

    return evaluate


def top1_accuracy(
    embed: EmbedFn,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    similarity: str = "cosine",
) -> float:
    """Acc@1: percentage of queries whose most similar document is relevant.

    Ties go to the first document. Documents that are truncated before their hidden
    lines are all equal, so that at most one of their queries succeeds by chance.
    """
    query_vectors = embed(list(queries.values()), "query")  # [Q, D]
    document_vectors = embed(list(corpus.values()), "document")  # [N, D]
    _, nearest = rank_documents(
        query_vectors, document_vectors, 1, similarity=similarity
    )  # [Q, 1]
    names = list(corpus)
    correct = [
        names[row] in qrels[query]
        for query, row in zip(queries, nearest[:, 0], strict=True)
    ]
    return 100 * sum(correct) / len(correct)


def scores_by_length(scores: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Extracts {task: {length: Acc@1}} of the synthetic tasks from a result."""
    by_task: dict[str, dict[int, float]] = {}
    for name, score in scores.items():
        task, _, length = name.rpartition("_")
        if task in TASKS and length.isdigit():
            by_task.setdefault(task, {})[int(length)] = score
    return by_task


def format_markdown(scores: Mapping[str, float], title: str) -> str:
    """A table of the scores with a row for each task and a column for each length."""
    by_task = scores_by_length(scores)
    lengths = _all_lengths(by_task)
    rows = []
    for name in _task_names(scores):
        by_length = by_task.get(name, {})
        cells = [f"{by_length[n]:.1f}" if n in by_length else "" for n in lengths]
        label = f"{name}, Acc@1" if by_length else name.replace("_ndcg", ", nDCG")
        rows.append([label, *cells, f"{scores[name]:.1f}"])
    rows.append(["mean", *[""] * len(lengths), f"{scores['main_score']:.1f}"])
    return markdown_page(title, ["task", *map(str, lengths), "score, %"], rows)


def plot_longembed(
    scores: Mapping[str, float],
    title: str,
    path: Path,
    document_length: int | None = None,
):
    """Draws the scores by length as a PNG; a data set's score is a horizontal line.

    Args:
        scores: Scores of the evaluator.
        title: Title of the plot.
        path: PNG file.
        document_length: Maximum number of tokens that the model embeds, marked by a
            vertical line; None for no line.

    Returns:
        The matplotlib Figure.
    """
    by_task = scores_by_length(scores)
    lengths = sorted(_all_lengths(by_task))
    with figure(path, (7, 3.8)) as (picture, axes):
        # A curve for each synthetic task.
        for name, by_length in by_task.items():
            label = f"{name} (Acc@1, mean {scores[name]:.1f})"
            axes.plot(
                list(by_length), list(by_length.values()), marker="o", label=label
            )
        if lengths:
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, map(str, lengths))
            axes.minorticks_off()
        else:
            axes.set_xticks([])
        # A horizontal line for the data set, whose documents have many lengths.
        data_sets = [name for name in _task_names(scores) if name not in by_task]
        for number, name in enumerate(data_sets, len(by_task)):
            label = f"{name.replace('_ndcg', ' (nDCG')}, {scores[name]:.1f})"
            axes.axhline(scores[name], color=f"C{number}", ls="--", label=label)
        if document_length and lengths:
            label = f"the model encodes {document_length} tokens"
            axes.axvline(document_length, color="0.6", ls=":", label=label)
        axes.set(xlabel="document length, tokens", ylabel="score, %", title=title)
        axes.set(ylim=(-3, 103))
        axes.grid(alpha=0.3)
        axes.legend()
    return picture


def _all_lengths(by_task: Mapping[str, Mapping[int, float]]) -> list[int]:
    """The lengths of all tasks, without duplicates."""
    return list(dict.fromkeys(n for by_length in by_task.values() for n in by_length))


def _task_names(scores: Mapping[str, float]) -> list[str]:
    """The names of the scores of complete tasks, whose mean is the main score."""
    single_lengths = {
        f"{task}_{length}"
        for task, by_length in scores_by_length(scores).items()
        for length in by_length
    }
    return [
        name for name in scores if name not in single_lengths and name != "main_score"
    ]


def _synthetic_tasks(
    tasks: Sequence[str], lengths: Sequence[int], text: str, seed: int
) -> dict[str, RetrievalTask]:
    """Makes the synthetic data: {"task_length": (corpus, queries, qrels)}."""
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    if tasks and not lengths:
        raise ValueError("longembed needs a length, such as 512")
    synthetic = {}
    if "passkey" in tasks:
        synthetic |= {f"passkey_{n}": passkey(n, seed) for n in lengths}
    if "needle" in tasks:
        words = read_words(text, max(map(filler_words, lengths)))
        synthetic |= {f"needle_{n}": needle(n, words, seed) for n in lengths}
    return synthetic
