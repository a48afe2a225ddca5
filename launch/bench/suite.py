"""Benchmark of a suite of tasks, against mteb with sentence-transformers."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch import main as cli
from research.eval.suites.mteb_tasks import make_mteb_task
from research.eval.suites.tasks import (
    cache_vectors,
    depends_on_role,
    read_suite,
    score_suite,
)
from research.inference.embedder import Embedder
from research.interop import load


def compare_suite(model_name: str, data: str, rounds: int) -> dict:
    """Scores local tasks with Embax, and with mteb and the same weights in PyTorch.

    There is no turn to warm up, since a suite is run once: the time includes reading
    the files and what has to be compiled, but not loading the weights.

    Args:
        model_name: Name of the model.
        data: Suite file, or folder of tasks.
        rounds: Number of timed runs of each side, in alternation.
    """
    import mteb
    from sentence_transformers import SentenceTransformer

    tasks, _ = read_suite(data)
    model = load.load(model_name)
    peer = SentenceTransformer(str(load.resolve_folder(model_name)), device="cpu")
    peer.max_seq_length = model.max_length
    scores: dict[str, dict[str, float]] = {}
    texts: dict[str, int] = {}  # that each side encodes

    def run_ours():
        embedder, count = Embedder(model, allow_empty=True), 0

        def embed_and_count(batch, role):
            nonlocal count
            count += len(batch)
            return embedder(batch, role)

        embed = cache_vectors(embed_and_count, by_role=depends_on_role(embedder))
        evaluators = {task.name: task.build(model.similarity) for task in tasks}
        results = score_suite(evaluators, embed, _report)
        scores["ours"] = take_main_scores(results)
        texts["ours"] = count

    # mteb gives the texts of a task to sentence-transformers' encode.
    def run_theirs():
        encode, count = peer.encode, 0

        # Also called by encode_query and encode_document, by keywords alone
        def encode_and_count(inputs, **options):
            nonlocal count
            count += len(inputs)
            return encode(inputs, **options)

        peer.encode = encode_and_count
        mteb_tasks = [make_mteb_task(t.task, t.name, **t.arguments) for t in tasks]
        options = {"encode_kwargs": {"batch_size": 32}, "show_progress_bar": False}
        results = mteb.evaluate(
            peer, mteb_tasks, cache=None, co2_tracker=False, **options
        )
        scores["theirs"] = {
            result.task_name: 100 * float(result.get_score())
            for result in results.task_results
        }
        peer.encode, texts["theirs"] = encode, count

    sides = {"ours": run_ours, "theirs": run_theirs}
    # In alternation, so that both run under the same conditions.
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    medians: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, run in sides.items():
            starts = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                values = medians.setdefault(clock, {}).setdefault(name, [])
                values.append(read() - starts[clock])
            cli.log(f"{name}: {medians['seconds'][name][-1]:.1f} s")
    # Medians over the rounds, of the time on the clock and that of all cores.
    medians = {
        clock: {name: statistics.median(values) for name, values in both.items()}
        for clock, both in medians.items()
    }
    differences = [
        abs(scores["ours"][name] - scores["theirs"][name]) for name in scores["ours"]
    ]
    return {
        **medians,
        "ratio": medians["seconds"]["theirs"] / medians["seconds"]["ours"],
        "cpu_ratio": medians["cpu_seconds"]["theirs"] / medians["cpu_seconds"]["ours"],
        "rounds": rounds,
        "texts": texts,
        "scores": scores,
        "largest_difference": float(np.max(differences)),
    }


def take_main_scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{task: main score} of a suite's results.

    Raises:
        ValueError: A task failed, so that the sides would not do the same.
    """
    for name, result in results.items():
        if "error" in result:
            raise ValueError(f"{name}: {result['error']}")
    return {name: result["main_score"] for name, result in results.items()}


def _report(name: str, scores, seconds: float) -> None:
    cli.log(f"  {name}: {scores.get('main_score', scores)} ({seconds:.1f} s)")
