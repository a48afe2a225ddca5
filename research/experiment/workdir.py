"""Files of a run: config.json, tokenizer.json and model.json in its workdir."""

import json
from pathlib import Path

import ml_collections

from research.atomic_write import atomic_write, write_json
from research.config_sections import diff_configs
from research.experiment.build import build
from research.processes import call_on_first
from research.text.tokenization import load_tokenizer
from research.train.loop import Experiment


def prepare_run(
    config: ml_collections.ConfigDict, workdir: Path, *, cache: Path | None = None
) -> Experiment:
    """Builds an experiment and writes the files of its workdir except checkpoints.

    Hold `train.workdir_lock.lock_workdir` from here to the end of training. With
    several processes, the first one writes the files.

    Args:
        config: The config of the run.
        workdir: Folder of the run: new, or that of an earlier run of the same config,
            whose tokenizer is then reused.
        cache: Folder of tokenized texts; workdir/tokens if None.

    Returns:
        The experiment, for `train.loop.train(experiment, workdir)`.

    Raises:
        ValueError: The config is invalid, or the workdir holds a run of another config.
    """
    workdir = Path(workdir)
    check_workdir(workdir, config)
    # A resumed run keeps the tokenizer that its checkpoints were trained with
    tokenizer = None
    if (workdir / "tokenizer.json").exists():
        tokenizer = load_tokenizer(workdir)
    experiment = build(config, cache=cache or workdir / "tokens", tokenizer=tokenizer)
    call_on_first(
        lambda: write_workdir(workdir, config, experiment), "writing to the workdir"
    )
    return experiment


def check_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if the workdir holds a run of another config."""
    path = workdir / "config.json"
    if not path.exists():
        return
    # A run can be resumed only with an equal config
    if lines := diff_configs(json.loads(path.read_text()), _to_json(config)):
        raise ValueError(
            f"{workdir} holds a run of another config: {'; '.join(lines[:3])}; "
            "use another workdir, or delete this one"
        )


def write_workdir(
    workdir: Path, config: ml_collections.ConfigDict, experiment: Experiment
) -> None:
    """Writes the files that `interop.load` and a resumed run need besides checkpoints.

    config.json holds the config, which configs/replay.py can run again; tokenizer.json
    holds the tokenizer; model.json describes how the model embeds.
    """
    write_json(workdir / "config.json", _to_json(config))
    if not (workdir / "tokenizer.json").exists():
        with atomic_write(workdir / "tokenizer.json") as draft:
            experiment.tokenizer.save(str(draft))
    write_json(workdir / "model.json", experiment.model_card)


def _to_json(config: ml_collections.ConfigDict) -> dict:
    """The config as it is after a round trip through JSON: tuples become lists."""
    return json.loads(config.to_json())
