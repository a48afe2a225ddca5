"""Benchmark of mining hard negatives, against sentence-transformers."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launch import main as cli
from research.data.columns import read_examples
from research.data.pairs.mined_files import write_rows
from research.interop import load

# Pairs of short texts, none of which has a group, and a file of further passages.
PAIRS = "pairs/parasci_acl.jsonl.gz"
PASSAGES = "pairs/asset_simplification.jsonl.gz"
NEGATIVES, RANGE_MAX, RELATIVE_MARGIN = 5, 50, 0.05
# What a user of sentence-transformers would write for the same.
PEER = """
import json
import sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

model = SentenceTransformer(sys.argv[1], device="cpu")
pairs, corpus = ([json.loads(line) for line in open(path)] for path in sys.argv[2:4])
mined = mine_hard_negatives(
    Dataset.from_list(pairs),
    model,
    corpus=[row["text"] for row in corpus],
    num_negatives=int(sys.argv[5]),
    range_max=int(sys.argv[6]),
    relative_margin=float(sys.argv[7]),
    output_format="n-tuple",
    output_scores=True,
)
mined.to_json(sys.argv[4])
"""


def compare_mining(
    model: str, data: str, queries: int, passages: int, rounds: int
) -> dict:
    """Mines the negatives of a file by both libraries, each in processes of its own.

    The time is that of a process, in which the model is loaded and compiled and all
    texts are embedded; programs that an earlier run has compiled are found on disk.

    Args:
        model: Name of the model.
        data: Folder that holds PAIRS and PASSAGES.
        queries: Number of queries.
        passages: Number of passages, which include the queries' positives.
        rounds: Number of timed processes of each library, in alternation.

    Raises:
        ValueError: The file has too few pairs, or a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs, corpus, *outputs = (
            f"{folder}/{name}.jsonl" for name in ("pairs", "corpus", "ours", "theirs")
        )
        _write_texts(data, pairs, corpus, queries, passages)
        ours = [f"--model={model}", f"--data={pairs}", f"--corpus={corpus}"]
        ours += [f"--output={outputs[0]}", f"--negatives={NEGATIVES}"]
        ours += [f"--range_max={RANGE_MAX}", f"--relative_margin={RELATIVE_MARGIN}"]
        theirs = [str(load.resolve_folder(model)), pairs, corpus, outputs[1]]
        theirs += map(str, (NEGATIVES, RANGE_MAX, RELATIVE_MARGIN))
        commands = {
            "ours": ["-m", "launch.mine", *ours],
            "theirs": ["-c", PEER, *theirs],
        }
        seconds = {side: [] for side in commands}
        memory = dict.fromkeys(commands, 0.0)  # MiB
        for _ in range(rounds):
            for side, command in commands.items():
                elapsed, peak = _measure(command)
                cli.log(f"{side}: {elapsed:.1f} s, {peak:,.0f} MiB")
                seconds[side].append(elapsed)
                memory[side] = max(memory[side], peak)
        mined = [_read_negatives(path) for path in outputs]
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    same = sum(mined[0].get(pair) == mined[1][pair] for pair in mined[1])
    return {
        "queries": queries,
        "passages": passages,
        "seconds": medians,
        "ratio": medians["theirs"] / medians["ours"],
        "peak_mebibytes": memory,
        "rounds": rounds,
        "rows": [len(negatives) for negatives in mined],
        "same_negatives": same,
    }


def _write_texts(
    data: str, pairs: str, corpus: str, queries: int, passages: int
) -> None:
    """Writes the first pairs of a file, and a corpus with further positives."""
    files = [f"{data}/{PAIRS}", f"{data}/{PASSAGES}"]
    examples, further = (read_examples(path).examples for path in files)
    distinct = {example.query: example for example in examples}
    rows = [
        {"query": query, "positive": example.positives[0]}
        for query, example in list(distinct.items())[:queries]
    ]
    # The positives of these queries are the first ones
    texts = dict.fromkeys(row["positive"] for row in rows)
    texts |= dict.fromkeys(example.positives[0] for example in [*examples, *further])
    if len(rows) < queries or len(texts) < passages:
        raise ValueError(
            f"{' and '.join(files)} have {len(distinct):,} queries and {len(texts):,} "
            f"passages, fewer than {queries:,} and {passages:,}"
        )
    write_rows(Path(pairs), rows)
    write_rows(Path(corpus), ({"text": text} for text in list(texts)[:passages]))


def _measure(command: Sequence[str]) -> tuple[float, float]:
    """Runs a Python command; its seconds, and its peak memory in MiB.

    Raises:
        ValueError: It fails.
    """
    # Both libraries look only on the disk for the model.
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace")[-500:]
            raise ValueError(f"{' '.join(command[:2])} failed: {text}")
    return elapsed, usage.ru_maxrss / 1024


def _read_negatives(path: str) -> dict[tuple[str, str], list[str]]:
    """{(query, positive): its negatives} of a file of either library."""
    negatives = {}
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        texts = row.get("negative") or [
            row[f"negative_{i}"] for i in range(1, NEGATIVES + 1)
        ]
        negatives[row["query"], row["positive"]] = texts
    return negatives
