"""Command that trains a model, or resumes its training.

python -m launch.train --config=configs/x.py[:variant] --workdir=DIR
python -m launch.train --config=configs/finetune.py:train=my.jsonl --workdir=runs/mine
python -m launch.train --config=configs/finetune.py --help   # and its variants

Every value of the config is a flag: --config.loss.temperature=0.02. A call replaces a
whole section: --config.loss="cosent(scale=20)", --config.evals.b="sts(data='b.tsv')".
"""

import copy
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import main as cli
from launch.recipes import describe_recipe, parse_section_flags
from launch.supervise import supervise

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe and its variant: configs/x.py or configs/x.py:tiny,steps=10.",
    lock_config=True,
)
WORKDIR = cli.define_path(
    "workdir", None, "Folder of the run; a run that is there goes on."
)
CACHE = cli.define_path(
    "cache",
    None,
    "Folder of tokenized texts that runs share; WORKDIR/tokens if unset.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print what a training step costs, how long the run takes, and a micro_batch that "
    "fits the memory, and do not train.",
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "Steps a ... b-1 of the range a:b, such as 10:13, that are traced into "
    "WORKDIR/profile, for xprof or TensorBoard.",
)
WANDB_PROJECT = flags.DEFINE_string(
    "wandb_project",
    None,
    "Project of Weights & Biases that gets the log, too; needs the package wandb.",
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "With --dry_run: TPU slice to compile for, such as v5e:4x4."
)
cli.group_flags("Run", CONFIG, WORKDIR, CACHE)
cli.group_flags("Dry run", DRY_RUN, TOPOLOGY)
cli.group_flags("Logs", WANDB_PROJECT, PROFILE_STEPS)


def main():
    """Trains, or with --dry_run measures the cost of a training step."""
    if CONFIG.value is None:
        raise ValueError("--config is needed, such as configs/quickstart.py")
    if DRY_RUN.value:
        return _dry_run()
    if WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder of the run")
    return _train(Path(WORKDIR.value))


def _train(workdir: Path):
    # Imported here, so that mistakes in flags are reported at once.
    from research import processes
    from research.experiment.workdir import prepare_run
    from research.file_lock import lock_folder
    from research.train import loop
    from research.train.profiling import parse_profile_steps
    from research.train.wandb_run import require_wandb

    # Mistakes in flags, before anything is built.
    profile_steps = range(0)
    if PROFILE_STEPS.value is not None:
        profile_steps = parse_profile_steps(PROFILE_STEPS.value, CONFIG.value.steps)
    if WANDB_PROJECT.value:
        require_wandb(WANDB_PROJECT.value)
    # Connect the processes before JAX is used.
    processes.initialize(stop_together=True)
    cache = Path(CACHE.value) if CACHE.value else None
    with lock_folder(workdir):
        experiment = prepare_run(CONFIG.value, workdir, cache=cache)
        result = loop.train(
            experiment,
            workdir,
            profile_steps=profile_steps,
            wandb_project=WANDB_PROJECT.value,
        )
    return {
        "workdir": str(workdir),
        "step": int(result.state.step),
        "finished": result.finished,
        **({"best": result.best._asdict()} if result.best else {}),
        **result.metrics,
        "evals": result.evals,
    }


def _dry_run():
    # Builds the run without writing anything but the token cache.
    from research.analysis.dry_run import dry_run
    from research.analysis.tpu_topology import find_slice_devices
    from research.experiment.build import TOKEN_CACHE, build

    cache = Path(CACHE.value) if CACHE.value else TOKEN_CACHE
    # The batch, the mesh and the step are those that the slice would get.
    devices = find_slice_devices(TOPOLOGY.value) if TOPOLOGY.value else None
    config = CONFIG.value
    experiment = build(config, cache=cache, devices=devices)
    if "micro_batch" not in config.objective:
        return dry_run(experiment, TOPOLOGY.value)

    def build_chunked(micro_batch: int):
        chunked = copy.deepcopy(config)
        chunked.objective.micro_batch = micro_batch
        return build(chunked, cache=cache, devices=devices)

    return dry_run(
        experiment,
        TOPOLOGY.value,
        micro_batch=config.objective.micro_batch,
        build_chunked=build_chunked,
    )


if __name__ == "__main__":
    supervise()
    sys.argv = parse_section_flags(sys.argv)
    cli.run(main, f"{__doc__}\n{describe_recipe(sys.argv)}")
