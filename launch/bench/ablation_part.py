"""The last part of the accelerator check: elastic recipes on a 12-layer model."""

import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.common import starbucks_pairs
from launch.bench.records import Recorder
from launch.bench.train_step import load_recipe
from launch.bench.workloads import Setting
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.tasks.sts import sts
from research.experiment.workdir import prepare_run
from research.inference.embedder import Embedder
from research.interop import load
from research.train import loop
from research.types import Evaluator

STEPS = 312  # of 64 triplets: one pass over 20,000
# (row of the table, recipe), in order of value. A model per depth comes last; that of
# the full depth is the first row.
ROWS = (
    ("full size", "configs/separate.py", {"depth": 12}),
    ("starbucks", "configs/starbucks_sts.py", {}),
    ("matryoshka", "configs/matryoshka.py", {}),
    ("mse2d", "configs/mse2d.py", {}),
    *(
        (f"separate {depth}", "configs/separate.py", {"depth": depth})
        for depth in (2, 6, 10, 4, 8)
    ),
)


def run_ablation(setting: Setting, recorder: Recorder) -> None:
    """Trains each row for one pass and scores STS-B test at the sizes of Starbucks."""
    if setting.model is None and not setting.tiny:
        recorder.write("", left_out="no --model, a folder of a 12-layer embedder")
        return
    file = setting.find_sts_file()
    if not file.exists():
        recorder.write("", left_out=f"no {file}")
        return
    evaluator = sts(data=str(file))
    if setting.model is not None:
        recorder.attempt(
            "untrained",
            lambda: _score(str(setting.model), evaluator, setting),
            needs=30,
        )
    # A row takes about as long as the one before it
    needs = 40
    for name, recipe, options in ROWS[: 3 if setting.tiny else None]:
        start = time.time()
        recorder.attempt(
            name,
            lambda r=recipe, o=options: _train_and_score(setting, r, o, evaluator),
            needs=needs,
        )
        needs = min(40, 1.2 * (time.time() - start))


def _train_and_score(
    setting: Setting, recipe: str, options: dict[str, Any], evaluator: Evaluator
) -> dict[str, Any]:
    config = load_recipe(recipe, _make_variant(setting, options))
    source = section(SOURCES, "files", path=str(setting.find_text_file("nli")))
    config.data = {"nli": source}
    config.encoder.dtype = "bfloat16"
    config.save_every, config.log_every = 0, 50
    workdir = setting.scratch / "ablation"
    shutil.rmtree(workdir, ignore_errors=True)
    # The same tokens serve all rows
    start = time.time()
    experiment = prepare_run(config, workdir, cache=setting.scratch / "tokens")
    result = loop.train(experiment, workdir)
    seconds = time.time() - start
    scores = _score(str(workdir), evaluator, setting)
    return {
        **scores,
        "steps": config.steps,
        "batch": config.batch_size,
        "train_seconds": seconds,
        "tokens_per_second": result.metrics.get("tokens_per_second"),
        "loss": result.metrics.get("loss"),
    }


def _make_variant(setting: Setting, options: dict[str, Any]) -> str:
    """The variant of a recipe."""
    fields = dict(options)
    if setting.tiny:
        fields = {"depth": 6} if "depth" in options else {}
        return ",".join(["tiny", *(f"{k}={v}" for k, v in fields.items())])
    fields |= {"model": setting.model, "data": setting.data, "steps": STEPS}
    return ",".join(f"{name}={value}" for name, value in fields.items())


def _score(model: str, evaluator: Evaluator, setting: Setting) -> dict[str, Any]:
    """Scores {"DEPTHxDIM": main score} at the sizes of Starbucks that a model has."""
    loaded = load.load(model)
    sizes = _find_sizes(setting)
    depths = [depth for depth, _ in sizes if depth <= loaded.config.depth]
    embed = Embedder(loaded, depths=depths, normalize=False)
    cache: dict[tuple, np.ndarray] = {}  # {texts: [N, depths, D]}

    def score(index: int, dim: int) -> float:
        def embed_size(texts: Sequence[str], role: str) -> np.ndarray:
            if tuple(texts) not in cache:
                cache[tuple(texts)] = embed(texts, role)
            return cache[tuple(texts)][:, index, :dim]

        return float(evaluator(embed_size)["main_score"])

    return {
        "scores": {
            f"{depth}x{dim}": score(depths.index(depth), dim)
            for depth, dim in sizes
            if depth in depths
        }
    }


def _find_sizes(setting: Setting) -> tuple[tuple[int, int], ...]:
    """The sizes of Starbucks for the model of all rows."""
    return starbucks_pairs(load_recipe(ROWS[1][1], _make_variant(setting, {})))
