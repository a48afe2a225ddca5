"""Flags of launch.evaluate that compare models, and write scores of single items."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import flags as options
from launch import main as cli
from launch.evaluate_embedders import make_task_embedder
from launch.evaluate_kinds import choose_similarity
from research import processes
from research.eval.comparison.item_values import (
    read_item_table,
    write_item_table,
    write_run,
)
from research.eval.comparison.significance import (
    apply_corrections,
    compare_items,
    mark_p,
)
from research.eval.tables import markdown_table
from research.interop import load
from research.text.chunking import Chunking
from research.types import Evaluator, ItemValues, TaskScores

AGAINST = flags.DEFINE_multi_string(
    "against",
    [],
    "Another model, which --model is compared with on the same queries or pairs, or the"
    " file that --scores wrote of it. The options of --model hold for it, too. The flag"
    " may be repeated.",
)
SCORES = cli.define_path(
    "scores",
    None,
    "The .tsv file in which the score of each query, pair or text is written.",
)
RUN = cli.define_path(
    "run", None, "The file in which the rankings of a search are written, as TREC's."
)
# Tasks that rank documents, if their examples have no scores.
SEARCHES = (
    "retrieval",
    "reranking",
    "examples",
    "pydocs_retrieval",
    "pydocs_long",
    "limit",
)


def check_flags(task: str, is_single: bool) -> None:
    """Raises an error for a wrong flag, before anything is computed.

    Args:
        task: The task.
        is_single: Whether one embedder is scored on one task.

    Raises:
        FileNotFoundError, ValueError: There is no such model, or a flag does not fit.
    """
    for flag in (AGAINST, SCORES, RUN):
        if flag.value and not is_single and not (flag is AGAINST and task == "suite"):
            raise ValueError(
                f"--{flag.name} goes with one way to embed and a task of queries, pairs"
                f" or texts, not with --task={task}, --grid or several chunkings"
            )
    if RUN.value and task not in SEARCHES:
        raise ValueError(f"--run={RUN.value} goes with {', '.join(SEARCHES)}")
    if SCORES.value and not SCORES.value.endswith(".tsv"):
        raise ValueError(f"--scores={SCORES.value} should end in .tsv")
    for name in AGAINST.value:
        if not _is_file(name):
            load.resolve_folder(name)


def compare_models(
    scores: Mapping[str, Any],
    make_evaluator: Callable[[str, str], Evaluator],
    chunk: Chunking | None,
    task: str,
) -> dict[str, Any]:
    """Writes the files of --scores and --run, and compares the models of --against.

    Args:
        scores: The scores of the model.
        make_evaluator: Function from the similarity and the name of a model to the
            evaluator of the task.
        chunk: How documents are cut.
        task: The task.

    Returns:
        {"against": a record for each other model}; {} without --against.

    Raises:
        ValueError: The task's score is made of no single items, or those of another
            model are not the same.
    """
    if not (AGAINST.value or SCORES.value or RUN.value):
        return {}
    # An error below should not cost the score.
    cli.log(f"{options.MODEL.value}: {scores['main_score']:.2f}")
    items = scores.item_values if isinstance(scores, TaskScores) else None
    if items is None:
        raise ValueError("this score is made of no single queries, pairs or texts")
    _write_files(items)
    # A comparison with each model; several are corrected for their number.
    records, p_values = [], []
    for name in AGAINST.value:
        if _is_file(name):
            other_items = read_item_table(Path(name).expanduser(), items)
        else:
            other = _score_model(name, make_evaluator, chunk, task)
            other_items = other.item_values
        comparison = compare_items(items, other_items)
        score = float(other_items.statistic(*other_items.values))
        record = {"model": name, "main_score": score}
        records.append(record | comparison.to_record())
        p_values.append(comparison.p_value)
    if not records:
        return {}
    if len(records) > 1:
        for name, corrected in apply_corrections(p_values).items():
            for record, p_value in zip(records, corrected.tolist(), strict=True):
                record[f"p_{name}"] = p_value
    cli.log(f"\n{_format_table(scores['main_score'], records)}")
    return {"against": records}


def _is_file(name: str) -> bool:
    """Whether --against names a file of scores, and not a model."""
    return Path(name).expanduser().is_file()


def _write_files(items: ItemValues) -> None:
    """Writes --scores and --run, in the first process."""
    if not processes.is_first():
        return
    if SCORES.value:
        write_item_table(items, Path(SCORES.value))
    if RUN.value:
        if items.make_run is None:
            raise ValueError(f"--run={RUN.value}: this task ranks no documents")
        write_run(items.make_run(), Path(RUN.value), Path(options.MODEL.value).name)


def _score_model(
    name: str,
    make_evaluator: Callable[[str, str], Evaluator],
    chunk: Chunking | None,
    task: str,
) -> TaskScores:
    """The scores of another model, embedded with the options of the flags."""
    model = options.load_model(name)
    # As the first model is embedded, with its own similarity
    embed = make_task_embedder(model, chunk, task, flags.FLAGS.data)
    return make_evaluator(choose_similarity(model, task), name)(embed)


def _format_table(main_score: float, records: Sequence[dict[str, Any]]) -> str:
    """A table of the models, with the differences and whether they are significant."""
    # The model, then the others with their differences from it.
    rows = [[options.MODEL.value, f"{main_score:.2f}", "", "", ""]]
    for record in records:
        tests = {k: p for k, p in record.items() if k.startswith("p_")}
        p_value = tests.get("p_bonferroni", next(iter(tests.values())))
        rows.append(
            [
                record["model"],
                f"{record['main_score']:.2f}",
                f"{record['difference']:+.2f}{mark_p(p_value)}",
                f"{record['low']:+.2f} to {record['high']:+.2f}",
                ", ".join(
                    f"{format_p(p)} ({k[2:].replace('_', ' ')})"
                    for k, p in tests.items()
                ),
            ]
        )
    header = ("", "main score", "difference", "95 % interval", "p")
    items, groups = records[0]["items"], records[0].get("groups", 0)
    in_groups = f" in {groups:,} groups" if groups else ""
    correction = " with Bonferroni's correction" if len(records) > 1 else ""
    note = (
        f"The difference is --model minus the other model, on the same {items:,} items"
        f"{in_groups}; an asterisk is p < 0.05{correction}."
    )
    return f"{markdown_table(header, rows)}\n\n{note}\n"


def format_p(p_value: float) -> str:
    """A p as a table shows it."""
    return f"{p_value:.4f}" if p_value >= 1e-4 else "< 0.0001"
