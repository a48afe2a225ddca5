"""Trains: python -m launch.train --config=configs/x.py[:arg] --workdir=DIR."""

import tempfile
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import main as cli

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, with its variant: configs/x.py:arg.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; resumed if it is one."
)
CACHE = flags.DEFINE_string(
    "cache", None, "Pre-tokenised texts; WORKDIR/tokens if unset."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what a step costs; do not train.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "With --dry_run, compile for this TPU slice, such as v5e:4x4."
)


def main():
    """Runs the experiment, or only says what its step costs."""
    if CONFIG.value is None:
        raise ValueError("--config is needed, such as configs/quickstart.py")
    if DRY_RUN.value:
        with tempfile.TemporaryDirectory() as folder:
            return _dry_run(Path(folder))
    if WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder of the run")
    return _train(Path(WORKDIR.value))


def _train(workdir: Path):
    from research import sharding as parallel
    from research.experiment import build as experiment
    from research.train import loop

    parallel.initialize()
    parts = experiment.make_experiment(CONFIG.value, workdir, cache=_cache())
    result = loop.train(parts, workdir)
    return {
        "workdir": str(workdir),
        "step": int(result.state.step),
        "finished": result.finished,
        **result.metrics,
        "evals": result.evals,
    }


def _dry_run(workdir: Path):
    from research.analysis import dry_run as dryrun
    from research.experiment import build as experiment

    parts = experiment.make_experiment(CONFIG.value, workdir, cache=_cache())
    return dryrun.dry_run(parts, topology=TOPOLOGY.value)


def _cache() -> Path | None:
    return Path(CACHE.value) if CACHE.value else None


if __name__ == "__main__":
    cli.run(main)
