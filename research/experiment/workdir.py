"""Files of a run in its workdir: config, tokenizer, model and data hashes, as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from research.atomic_write import atomic_write, read_json, write_json
from research.config_sections import diff_configs
from research.experiment.build import build
from research.processes import call_on_first
from research.text.tokenization import load_tokenizer
from research.train.checkpoints import list_steps
from research.train.experiment import Experiment

# Keys that may change when a run goes on: what is written and measured, and where and
# how the same numbers are computed.
FREE_KEYS = (
    *("log_every", "save_every", "keep", "keep_every", "keep_best", "patience"),
    *("eval_every", "eval_sizes", "evals", "mesh"),
    *("encoder.remat", "encoder.unroll", "encoder.attention"),
    # Where vectors are read from, as below
    *("teacher.queries", "teacher.documents"),
)
# Where a data source is read from; data.json holds the hash of its content.
PATH_KEYS = ("path", "corpus", "clusters")


def prepare_run(
    config: ml_collections.ConfigDict, workdir: Path, *, cache: Path | None = None
) -> Experiment:
    """Builds an experiment and writes the files of its workdir except checkpoints.

    Hold `file_lock.lock_folder` from here to the end of training. With
    several processes, the first one writes the files.

    Args:
        config: The config of the run.
        workdir: Folder of the run: new, or that of an earlier run of the same config
            (but for FREE_KEYS), whose tokenizer is then reused.
        cache: Folder of tokenized texts; workdir/tokens if None.

    Returns:
        The experiment, for `train.loop.train(experiment, workdir)`.

    Raises:
        ValueError: The config is invalid, or the workdir holds a run of another config
            or of other data.
    """
    workdir = Path(workdir)
    check_workdir(workdir, config)
    # A resumed run keeps the tokenizer that its checkpoints were trained with
    tokenizer = load_tokenizer(workdir) if is_resumed(workdir) else None
    experiment = build(
        config,
        cache=cache or workdir / "tokens",
        negatives=workdir / "negatives",
        tokenizer=tokenizer,
    )
    check_data(workdir, experiment.data_hashes)
    call_on_first(
        lambda: write_workdir(workdir, config, experiment), "writing to the workdir"
    )
    return experiment


def check_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if the workdir holds checkpoints of another config."""
    if not is_resumed(workdir):
        return
    # A run can be resumed only with a config of the same result
    before = _remove_free_keys(read_json(workdir / "config.json"))
    if lines := diff_configs(before, _remove_free_keys(_to_json(config))):
        raise ValueError(
            f"{workdir} holds a run of another config: {'; '.join(lines[:3])}; "
            "use another workdir, or delete this one"
        )


def check_data(workdir: Path, hashes: Mapping[str, str]) -> None:
    """Raises ValueError if a resumed run's data have another content than before.

    Args:
        workdir: Folder of the run.
        hashes: {name of a data source, or "config.teacher": hash of its content}.
    """
    if not is_resumed(workdir):
        return
    before = read_json(workdir / "data.json")
    if changed := [name for name in hashes if hashes[name] != before.get(name)]:
        raise ValueError(
            f"the content of data {', '.join(map(repr, changed))} has changed since "
            f"the run in {workdir} began: use another workdir, or the data as they were"
        )


def write_workdir(
    workdir: Path, config: ml_collections.ConfigDict, experiment: Experiment
) -> None:
    """Writes the files that `interop.load` and a resumed run need besides checkpoints.

    config.json holds the config, which configs/replay.py can run again; tokenizer.json
    holds the tokenizer; model.json describes how the model embeds; data.json holds the
    hashes of the data.
    """
    write_json(workdir / "config.json", _to_json(config))
    if not is_resumed(workdir):
        with atomic_write(workdir / "tokenizer.json") as draft:
            experiment.tokenizer.save(str(draft))
    write_json(workdir / "model.json", experiment.model_card)
    write_json(workdir / "data.json", experiment.data_hashes)


def is_resumed(workdir: Path) -> bool:
    """Whether a run in this workdir goes on from a checkpoint."""
    return bool(list_steps(workdir / "checkpoints"))


def _remove_free_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without FREE_KEYS, and its data sources without PATH_KEYS.

    FREE_KEYS name a key or a key of a section.
    """
    free = {
        key: {k: v for k, v in value.items() if f"{key}.{k}" not in FREE_KEYS}
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
        if key not in FREE_KEYS
    }
    free["data"] = {
        name: {key: value for key, value in source.items() if key not in PATH_KEYS}
        for name, source in config["data"].items()
    }
    return free


def _to_json(config: ml_collections.ConfigDict) -> dict:
    """The config as it is after a round trip through JSON: tuples become lists."""
    return json.loads(config.to_json())
