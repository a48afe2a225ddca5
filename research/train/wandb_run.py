"""The log of a run in Weights & Biases, whose package is imported only on demand."""

import json
import uuid
from pathlib import Path
from typing import Any

from research.atomic_write import write_json


def require_wandb(project: str) -> Any:
    """Imports the package wandb.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"--wandb_project={project} needs a package: pip install wandb"
        ) from None
    return wandb


def start_wandb_run(project: str, workdir: Path) -> Any:
    """Starts the W&B run of a workdir, or goes on with it, with its config.

    Args:
        project: Name of the project, or "entity/project".
        workdir: Folder of the run, which keeps the id of its W&B run.

    Returns:
        The run, with `log(numbers, step=n)` and `finish()`.
    """
    wandb = require_wandb(project)
    workdir = workdir.resolve()
    # The id, by which a resumed run goes on with its curves
    path = workdir / "wandb.json"
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex})
    config = workdir / "config.json"
    entity, _, name = project.rpartition("/")
    return wandb.init(
        project=name,
        entity=entity or None,
        id=json.loads(path.read_text())["id"],
        resume="allow",
        name=workdir.name,
        dir=str(workdir),
        config=json.loads(config.read_text()) if config.exists() else None,
    )
