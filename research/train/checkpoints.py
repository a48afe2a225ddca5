"""Checkpoints of a run: the only file that calls orbax.

A checkpoint is a folder named by its step with two items, `params` (what is trained,
readable alone) and `rest` (step, frozen parameters, optimizer), each with a checksum of
its bits, because the files have none. It appears whole or not at all. Randomness needs
no state: a step's key is the run's key folded with the step.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from research.types import Params, TrainState

Manager = ocp.CheckpointManager
# What goes wrong in orbax reaches us as an exception; it also logs the traceback.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
# Arrays that several devices hold whole are written in parts, a part by each, and every
# part is cut by a program that is compiled for it: worth it for large ones only.
LARGE = 2**24  # bytes
ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LARGE),
    override=True,
)


def open_manager(folder: Path, *, keep: int = 2, keep_every: int = 0) -> Manager:
    """The checkpoints of a folder, which is made if missing; close() it at the end.

    Args:
        folder: holds one folder per step.
        keep: the newest ones that stay.
        keep_every: also keep the steps that this divides; 0 for none.
    Raises:
        ValueError: the folder cannot be written.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
    )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return Manager(folder.absolute(), options=options)


def save(manager: Manager, state: TrainState) -> None:
    """Starts to write the state under its step; training may go on meanwhile.

    Raises:
        ValueError: this one, or the one before, could not be written.
    """
    with _writing(manager.directory):
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(_sealed(state.params)),
            rest=ocp.args.StandardSave(_sealed(_rest(state))),
        )
        manager.save(int(state.step), args=args)


def wait(manager: Manager) -> None:
    """Returns when everything that was saved is on disk.

    Raises:
        ValueError: it could not be written.
    """
    with _writing(manager.directory):
        manager.wait_until_finished()


def latest_step(folder: Path) -> int | None:
    """The newest step of a folder, None if it has none."""
    return max(_steps(folder), default=None)


def restore(manager: Manager, target: TrainState) -> TrainState | None:
    """The newest state that can be read, None if the folder holds none.

    Newer ones that cannot be read are reported on stderr and removed, so that the run
    can write them again.

    Args:
        manager: the folder's.
        target: ShapeDtypeStructs with the shardings wanted, on any mesh.
    Raises:
        ValueError: there are checkpoints, and none fits the target.
    """
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            params, rest = _read(manager, step, target)
        except Exception as error:  # what a broken file raises depends on the file
            damaged.append(step)
            _report(step, error)
            continue
        for other in damaged:
            manager.delete(other)
        return TrainState(params=params, **rest)
    if damaged:
        raise ValueError(
            f"none of the checkpoints {damaged} in {manager.directory} can be read "
            "as a state of this run"
        )
    return None


def restore_params(
    folder: Path, *, frozen: bool = False
) -> Params | tuple[Params, Params]:
    """The trained parameters of the newest checkpoint that can be read, in numpy.

    Args:
        folder: holds one folder per step.
        frozen: give (trained, frozen) parameters.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: none can be read.
    """
    steps = sorted(_steps(folder), reverse=True)
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    for step in steps:
        try:
            place = folder.absolute() / str(step)
            params = _read_item(place / "params")
            if not frozen:
                return params
            return params, _read_item(place / "rest").get("frozen") or {}
        except Exception as error:  # what a broken file raises depends on the file
            _report(step, error)
    raise ValueError(f"none of the checkpoints {steps} in {folder} can be read")


def _rest(state: TrainState) -> dict:
    return {
        "step": state.step,
        "frozen": state.frozen,
        "opt_state": state.opt_state,
    }


def _restore_args(target: TrainState):
    number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=target.step.sharding)
    params, rest = (
        ocp.args.StandardRestore({"tree": tree, "checksum": number})
        for tree in (target.params, _rest(target))
    )
    return ocp.args.Composite(params=params, rest=rest)


def _sealed(tree) -> dict:
    return {"tree": tree, "checksum": _checksum(tree)}


def _opened(item: dict):
    if int(_checksum(item["tree"])) != int(item["checksum"]):
        raise ValueError("its checksum does not match")
    return item["tree"]


@jax.jit
def _checksum(tree) -> jax.Array:
    """[] uint32, the sum of all bits taken as numbers, wrapped around."""

    def bits(x):
        if x.dtype != jnp.bool_:
            unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
            x = jax.lax.bitcast_convert_type(x, unsigned)
        return x.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return sum(map(bits, jax.tree.leaves(tree)), jnp.uint32(0))


def _read(manager: Manager, step: int, target: TrainState):
    with _quietly():
        items = manager.restore(step, args=_restore_args(target))
    return _opened(items["params"]), _opened(items["rest"])


def _read_item(folder: Path) -> Params:
    with _quietly(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        restore_args = jax.tree.map(lambda _: as_numpy, tree)
        args = ocp.args.PyTreeRestore(restore_args=restore_args)
        return _opened(reader.restore(folder, args=args))


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _report(step: int, error: Exception) -> None:
    print(
        f"checkpoint {step} cannot be read, trying the one before: {_reason(error)}",
        file=sys.stderr,
    )


def _reason(error: Exception) -> str:
    """The system's own words if tensorstore quotes them, else the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    quoted = re.search(r": ([^:]+) \[os_error_code", lines[0])
    return quoted[1] if quoted else lines[0][:200]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what asyncio logs about the other reads when one has failed."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _writing(folder) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tensorstore has no class of its own for a full disk
        raise ValueError(
            f"cannot write checkpoints to {folder}: {_reason(error)}"
        ) from error
