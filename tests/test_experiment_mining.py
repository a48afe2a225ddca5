"""Hard negatives that a run mines with its own model."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import separate
from research import sharding
from research.config_sections import section
from research.data.columns import read_examples
from research.data.pairs.mined_files import number_texts
from research.data.sources import SOURCES
from research.experiment.mining import MINING
from research.experiment.table_pairs import number_table
from research.experiment.workdir import prepare_run
from research.inference.mining import mine_negatives
from research.inference.mining_rules import MiningRules
from research.train.checkpoints import restore_params
from research.train.experiment import abstract_state, initial_state
from tests.toy_process import virtual_devices

ROOT = Path(__file__).parent.parent
WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "tree")
# Some queries get random negatives, those whose positive the untrained model finds last
RULES = {"negatives": 2, "range_min": 1, "range_max": 40, "relative_margin": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 40 pairs, some of one query, and a few negatives."""
    folder = tmp_path_factory.mktemp("mining")
    rng = np.random.default_rng(0)
    rows = [
        {
            "query": f"{i % 36} {' '.join(rng.choice(WORDS, 4))}",
            "positive": f"{i} {' '.join(rng.choice(WORDS, 6))}",
            "negative": f"not {i} {' '.join(rng.choice(WORDS, 3))}",
        }
        for i in range(40)
    ]
    rows[39]["query"] = rows[0]["query"]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def make_config(folder, **mining):
    config = separate.get_config("tiny")
    config.encoder.depth, config.evals = 1, {}
    path = str(folder / "pairs.jsonl")
    config.data = {"pairs": section(SOURCES, "files", path=path)}
    config.mining = section(MINING, "refresh", **{"every": 3} | RULES | mining)
    return config


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_the_first_negatives_are_those_of_static_mining(
    folder, tmp_path, one_device, sampling
):
    config = make_config(folder, sampling=sampling)
    experiment = prepare_run(config, tmp_path, cache=folder / "tokens")
    state = initial_state(experiment, abstract_state(experiment, experiment.mesh))
    model = sharding.gather_params((state.params, state.frozen), experiment.mesh)
    (line,) = experiment.refresh.run(*model, 0)
    assert line.startswith("data 'pairs': 2 negatives mined for each query")
    files = experiment.batches.sources[0].refreshed
    negatives = files.read(0, 40)
    # The same from the texts, embedded as for an evaluation
    examples = read_examples(str(folder / "pairs.jsonl")).examples
    table = [t for e in examples for t in (e.query, *e.positives, *e.negatives)]
    documents = [t for e in examples for t in (*e.positives, *e.negatives)]
    texts = number_texts(examples, documents)
    embed = experiment.make_embedder(*model)
    passages = list(texts.passages)
    mined = mine_negatives(
        embed(list(texts.queries), "query"),
        embed(passages, "document"),
        texts.positives,
        MiningRules(**RULES, sampling=sampling, fill=True),
        seed=f"{config.seed} pairs 0",
    )
    filled = int((mined.missing > 0).sum())
    assert 0 < filled < 39 and f"{filled} of 39 queries with random ones" in line
    for example, row in zip(examples, negatives, strict=True):
        expected = mined.passages[texts.queries[example.query]]
        assert [table[i] for i in row] == [passages[i] for i in expected]
    # What is there is not mined again; what is damaged is
    assert list(experiment.refresh.run(*model, 0)) == []
    content = files.get_path(0).read_bytes()
    files.get_path(0).write_bytes(content[:-1])
    assert len(list(experiment.refresh.run(*model, 0))) == 1
    assert files.get_path(0).read_bytes() == content
    # Later ones are compared with those before
    (line,) = experiment.refresh.run(*model, 3)
    assert "% of them new" in line


def test_random_negatives_belong_to_no_query(folder, tmp_path, one_device):
    config = make_config(folder)
    config.mining = section(MINING, "random", every=3, negatives=3)
    experiment = prepare_run(config, tmp_path, cache=folder / "tokens")
    state = initial_state(experiment, abstract_state(experiment, experiment.mesh))
    model = sharding.gather_params((state.params, state.frozen), experiment.mesh)
    (line,) = experiment.refresh.run(*model, 0)
    assert line.startswith("data 'pairs': 3 random negatives for each query")
    (source,) = experiment.batches.sources
    pairs, rows = number_table(source.table), source.refreshed.read(0, 40)
    known = {(int(i), int(j)) for i, j in (*pairs.positives, *pairs.excluded)}
    numbers = {text: number for number, text in enumerate(pairs.documents)}
    assert all(len(set(row)) == 3 for row in rows.tolist())
    for query, row in zip(pairs.example_queries.tolist(), rows.tolist(), strict=True):
        assert not known & {(query, numbers[text]) for text in row}


@pytest.mark.parametrize(
    "mining,message",
    [
        ({"sources": ("nli",)}, "mining.sources names 'nli'; the data are pairs"),
        ({"every": 0}, "refresh's every is 0; it should be above 0"),
        ({"range_max": 2}, "range_min=1 and range_max=2 leave 1 candidates"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, mining, message):
    with pytest.raises(ValueError, match=message):
        prepare_run(make_config(folder, **mining), tmp_path, cache=folder / "tokens")


def train(folder, workdir, devices=1, kill_at=None):
    """The losses of a run by the command line, killed once it logs a step."""
    command = [
        *(sys.executable, "-m", "launch.train", "--config=configs/separate.py:tiny"),
        *(f"--workdir={workdir}", f"--cache={folder / 'tokens'}"),
        f"--config.data=files(path='{folder / 'pairs.jsonl'}')",
        "--config.mining=refresh(every=4, negatives=2, sampling='random')",
        *("--config.steps=18", "--config.save_every=3", "--config.log_every=1"),
        *("--config.encoder.depth=1", "--config.encoder.dropout=0"),
        "--config.optimizer.learning_rate=0.001",
    ]
    environ = virtual_devices(devices)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, **pipes)
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while kill_at and process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if kill_at else 0), errors.decode()
    rows = (
        list(map(json.loads, metrics.read_text().splitlines())) if not kill_at else []
    )
    return [row["loss"] for row in rows if "loss" in row]


def test_a_run_with_mining_killed_at_random_steps_ends_bit_equal(folder, tmp_path):
    expected = train(folder, tmp_path / "whole")
    moments = sorted(random.SystemRandom().sample(range(1, 17), 3))
    for moment in moments:
        train(folder, tmp_path / "killed", kill_at=moment)
    assert train(folder, tmp_path / "killed") == expected, f"killed after {moments}"
    models = [restore_params(tmp_path / w / "checkpoints") for w in ("whole", "killed")]
    jax.tree.map(np.testing.assert_array_equal, *models)
    # On more devices the losses are the same up to rounding
    several = train(folder, tmp_path / "several", devices=4)
    np.testing.assert_allclose(several, expected, rtol=2e-4)
