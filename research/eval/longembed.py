"""LongEmbed: what does a model still find in a long text, length by length?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from research.eval.needle_tasks import Collection, budget, needle, passkey, prose
from research.eval.retrieval import retrieval
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
) -> Evaluator:
    """The synthetic tasks of LongEmbed (Zhu et al. 2024) and, with `data`, a real one.

    A length beyond the model's own is evaluated all the same, the texts cut, as in the
    paper: there an encoder of 512 tokens finds 100, 100, 62, 22, 14, 4, 4, 2 % of the
    passkeys, those that it reads. With seed 0 it reads 100, 100, 42, 32, 18 % (BERT).
    The hub's own sets are the LEMB* tasks of mteb; `eval/mteb.py` runs them.

    Args:
        tasks: of 'passkey' and 'needle'; none if there is `data`.
        lengths: nominal lengths of their documents in tokens, at 0.75 words each.
        data: a BEIR folder, one task more.
        split: which of its qrels.
        text: what needles are hidden in: a text file or a folder of them; "" is the
            docstrings of the installed Python packages.
        seed: of the synthetic tasks.

    Returns:
        embed -> {"main_score", "passkey", "passkey_256", ..., "FOLDER_ndcg@10"} in
        percent: Acc@1 at each length, its mean over lengths, nDCG@10 of a folder's
        ranking. The main score is the mean over tasks.

    Raises:
        ValueError: a task is unknown, a length too short, the text too short.
        FileNotFoundError: a file or folder is missing.
    """
    if not (tasks or data):
        raise ValueError("longembed has neither a task nor the data of one")
    sets = _collections(tasks, lengths, text, seed)
    real = retrieval(data=data, split=split) if data else None
    name = f"{Path(data).expanduser().resolve().name}_ndcg@10"

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        scores = {key: accuracy(embed, *found) for key, found in sets.items()}
        means = {
            task: float(np.mean(list(values.values())))
            for task, values in by_length(scores).items()
        }
        if real is not None:
            means[name] = real(embed)["ndcg@10"]
        return {"main_score": float(np.mean(list(means.values()))), **means, **scores}

    return evaluate


def accuracy(
    embed: EmbedFn,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
) -> float:
    """Acc@1: the share of queries whose first document by cosine is right, in percent.

    Of equal documents the first one counts. Where the model's reach ends before their
    lines all are equal, and at most one query is answered by chance.
    """
    q = embed(list(queries.values()), "query")
    _, first = rank_documents(q, embed(list(corpus.values()), "document"), 1)
    documents = list(corpus)
    right = [
        documents[row] in qrels[query]
        for query, row in zip(queries, first[:, 0], strict=True)
    ]
    return 100 * sum(right) / len(right)


def by_length(scores: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """{task: {length: Acc@1}} of the synthetic tasks in an evaluator's scores."""
    found: dict[str, dict[int, float]] = {}
    for name, score in scores.items():
        task, _, length = name.rpartition("_")
        if task in TASKS and length.isdigit():
            found.setdefault(task, {})[int(length)] = score
    return found


def format_markdown(scores: Mapping[str, float], title: str) -> str:
    """A table of the scores: a row for each task, a column for each length."""
    found = by_length(scores)
    lengths = list(dict.fromkeys(n for values in found.values() for n in values))
    rows = [["task", *map(str, lengths), "score, %"]]
    for name in _tasks(scores):
        values = found.get(name, {})
        cells = [f"{values[n]:.1f}" if n in values else "" for n in lengths]
        label = f"{name}, Acc@1" if values else name.replace("_ndcg", ", nDCG")
        rows.append([label, *cells, f"{scores[name]:.1f}"])
    rows.append(["mean", *[""] * len(lengths), f"{scores['main_score']:.1f}"])
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * sizes[0], *("-" * (size - 1) + ":" for size in sizes[1:])])
    lines = [
        " | ".join([row[0].ljust(sizes[0]), *map(str.rjust, row[1:], sizes[1:])])
        for row in rows
    ]
    return "\n".join([f"# {title}", "", *(f"| {line} |" for line in lines)]) + "\n"


def plot_longembed(
    scores: Mapping[str, float], title: str, path: Path, reach: int | None = None
) -> None:
    """Draws the scores by length as a PNG; a real task, of any length, as a level line.

    Args:
        scores: of the evaluator.
        title: of the plot.
        path: of the PNG file.
        reach: tokens that the model reads, marked by a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    found = by_length(scores)
    for name, values in found.items():
        label = f"{name} (Acc@1, mean {scores[name]:.1f})"
        axes.plot(list(values), list(values.values()), marker="o", label=label)
    lengths = sorted({n for values in found.values() for n in values})
    if lengths:
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, map(str, lengths))
        axes.minorticks_off()
    else:
        axes.set_xticks([])
    real = [name for name in _tasks(scores) if name not in found]
    for number, name in enumerate(real, len(found)):
        label = f"{name.replace('_ndcg', ' (nDCG')}, {scores[name]:.1f})"
        axes.axhline(scores[name], color=f"C{number}", ls="--", label=label)
    if reach and lengths:
        label = f"the model reads {reach} tokens"
        axes.axvline(reach, color="0.6", ls=":", label=label)
    axes.set(xlabel="length of the documents, tokens", ylabel="score, %", title=title)
    axes.set(ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _tasks(scores: Mapping[str, float]) -> list[str]:
    """The names of the tasks' own scores, which the main score is the mean of."""
    parts = {
        f"{task}_{n}" for task, values in by_length(scores).items() for n in values
    }
    return [name for name in scores if name not in parts and name != "main_score"]


def _collections(
    tasks: Sequence[str], lengths: Sequence[int], text: str, seed: int
) -> dict[str, Collection]:
    """{task_length: its documents, queries and qrels}."""
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    if tasks and not lengths:
        raise ValueError("longembed needs a length, such as 512")
    sets = {}
    if "passkey" in tasks:
        sets |= {f"passkey_{length}": passkey(length, seed) for length in lengths}
    if "needle" in tasks:
        words = prose(text, max(map(budget, lengths)))
        sets |= {f"needle_{length}": needle(length, words, seed) for length in lengths}
    return sets
