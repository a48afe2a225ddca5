"""Checkpoints of a run, by Orbax: saving and restoring, with checksums.

A checkpoint is a folder named by its step with two items, `params` (the trained
parameters or their average, readable alone) and `training` (step, frozen parameters,
optimizer state, and what an average is of), each with a checksum of its bits, because
the files have none. It is written atomically. No random state is stored: the key of a
step is the run's key with the step's number folded in. best.json in the workdir names
the best checkpoint.
"""

import contextlib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from research.atomic_write import read_json, write_json
from research.types import Params, TrainState

Manager = ocp.CheckpointManager
# Replicated arrays of at least this many bytes are written in parts, one per device.
PARALLEL_WRITE_BYTES = 2**24
_BEST = "best.json"


class Best(NamedTuple):
    """The best evaluation of a run.

    Attributes:
        metric: The evaluation and its score, such as "dev/main_score". A minus sign
            before it says that smaller is better.
        step: Step of the evaluated model.
        score: Its score.
    """

    metric: str
    step: int
    score: float


# find_best(steps) -> the best evaluation of these steps, if any
FindBest = Callable[[Sequence[int]], Best | None]


def open_manager(
    folder: Path,
    *,
    keep: int = 2,
    keep_every: int = 0,
    find_best: FindBest | None = None,
) -> Manager:
    """Opens the checkpoints of a folder, creating it if missing; close() it when done.

    Args:
        folder: Folder with one folder per step.
        keep: Number of newest checkpoints to keep.
        keep_every: Checkpoints at multiples of this are kept too; 0 for none.
        find_best: Function of the steps with a checkpoint, whose best one is kept too.

    Raises:
        ValueError: The folder cannot be written.
    """
    _configure_orbax()
    policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep)]
    if keep_every:
        policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
    if find_best:
        policies.append(_KeepBest(find_best))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
    )
    with _catch_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return Manager(folder.absolute(), options=options)


class _KeepBest:
    """Orbax's preservation policy of the best checkpoint.

    Its own `BestN` needs the score when a checkpoint is written. Ours is written before
    the evaluation, so that a run which ends in an evaluation loses no step.
    """

    def __init__(self, find_best: FindBest):
        self._find_best = find_best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any):
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = self._find_best(steps)
        return [best is not None and step == best.step for step in steps]


def save(manager: Manager, state: TrainState) -> None:
    """Starts writing the state under its step number, in the background.

    Raises:
        ValueError: This checkpoint, or the previous one, could not be written.
    """
    with _catch_write_errors(manager.directory):
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(_with_checksum(state.model_params)),
            training=ocp.args.StandardSave(_with_checksum(_training_state(state))),
        )
        manager.save(int(state.step), args=args)


def wait(manager: Manager) -> None:
    """Waits until every checkpoint is on disk.

    Raises:
        ValueError: One could not be written.
    """
    with _catch_write_errors(manager.directory):
        manager.wait_until_finished()


def restore(manager: Manager, target: TrainState) -> TrainState | None:
    """Restores the newest readable checkpoint; None if the folder has none.

    Newer checkpoints that cannot be read are reported on stderr and deleted, so that
    the run can write them again.

    Args:
        manager: Checkpoints of the run.
        target: ShapeDtypeStructs with the shardings to restore to, on any mesh.

    Raises:
        ValueError: There are checkpoints, but none can be read as the target.
    """
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            params, training = _restore_step(manager, step, target)
        except jax.errors.JaxRuntimeError:  # of devices or processes, not of the files
            raise
        except Exception as error:  # the class depends on which file is damaged
            damaged.append(step)
            _report(step, error)
            continue
        # Newer checkpoints are removed only once an older one was read
        for newer in damaged:
            manager.delete(newer)
        if target.average is not None:
            return TrainState(average=params, **training)
        return TrainState(params=params, **training)
    if damaged:
        raise ValueError(
            f"none of the checkpoints {damaged} in {manager.directory} can be read "
            "as a state of this run"
        )
    return None


def restore_params(
    folder: Path, *, frozen: bool = False, step: int | None = None
) -> tuple[int, Any]:
    """Restores the parameters of a checkpoint, as NumPy arrays.

    Args:
        folder: Folder with one folder per step.
        frozen: Whether to return (trained, frozen) parameters instead of trained ones.
        step: Step of the checkpoint; None for the newest one that can be read.

    Returns:
        The step of the checkpoint, and the parameters.

    Raises:
        FileNotFoundError: The folder holds no checkpoint, or none of this step.
        ValueError: The checkpoint, or every one, cannot be read.
    """
    _configure_orbax()
    steps = sorted(list_steps(folder), reverse=True)
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    if step is not None and step not in steps:
        raise FileNotFoundError(
            f"no checkpoint of step {step} in {folder}; it has {_list_numbers(steps)}"
        )
    for candidate in steps if step is None else [step]:
        try:
            checkpoint = folder.absolute() / str(candidate)
            params = _read_item(checkpoint / "params")
            if not frozen:
                return candidate, params
            training = _read_item(checkpoint / "training")
            return candidate, (params, training.get("frozen") or {})
        except Exception as error:  # the class depends on which file is damaged
            if step is not None:
                raise ValueError(
                    f"{folder / str(step)} cannot be read: {_reason(error)}; the "
                    f"checkpoints of the run are {_list_numbers(steps)}"
                ) from error
            _report(candidate, error)
    raise ValueError(f"none of the checkpoints {steps} in {folder} can be read")


@functools.cache
def _configure_orbax() -> None:
    """Sets orbax's logging and array handler for this process, once."""
    # Errors in Orbax are raised as exceptions; hide the tracebacks that it also logs.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    # By default each device that holds a replicated array writes a part of it, and XLA
    # compiles a slicing program for every part: worth it for large arrays only.
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=PARALLEL_WRITE_BYTES
    )
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def _training_state(state: TrainState) -> dict:
    """The part of a state that only training needs."""
    part = {"step": state.step, "frozen": state.frozen, "opt_state": state.opt_state}
    return part if state.average is None else part | {"params": state.params}


def _restore_args(target: TrainState):
    # The [] uint32 checksum of each item
    number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=target.step.sharding)
    params, training = (
        ocp.args.StandardRestore({"tree": tree, "checksum": number})
        for tree in (target.model_params, _training_state(target))
    )
    return ocp.args.Composite(params=params, training=training)


def _with_checksum(tree) -> dict:
    return {"tree": tree, "checksum": _checksum(tree)}


def _check_checksum(item: dict):
    """Returns the tree of an item after checking its bits against the checksum."""
    if int(_checksum(item["tree"])) != int(item["checksum"]):
        raise ValueError("its checksum does not match")
    return item["tree"]


@jax.jit
def _checksum(tree) -> jax.Array:
    """The sum of all values' bits read as unsigned integers, modulo 2^32: [] uint32."""

    def sum_bits(x):
        if x.dtype != jnp.bool_:
            # The unsigned integer type of the same size; 8-byte types use uint32 pairs
            unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
            x = jax.lax.bitcast_convert_type(x, unsigned)
        return x.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return sum(map(sum_bits, jax.tree.leaves(tree)), jnp.uint32(0))


def _restore_step(manager: Manager, step: int, target: TrainState):
    with _silence_asyncio():
        items = manager.restore(step, args=_restore_args(target))
    return _check_checksum(items["params"]), _check_checksum(items["training"])


def _read_item(folder: Path) -> Params:
    with _silence_asyncio(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        # The stored tree says which arrays to read
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        restore_args = jax.tree.map(lambda _: as_numpy, tree)
        args = ocp.args.PyTreeRestore(restore_args=restore_args)
        return _check_checksum(reader.restore(folder, args=args))


def list_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints a folder holds; empty if it does not exist."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _list_numbers(steps: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(steps)))


def write_best(workdir: Path, best: Best | None) -> None:
    """Writes the best evaluation to best.json, or deletes that file without one."""
    if best is None:
        (workdir / _BEST).unlink(missing_ok=True)
    else:
        write_json(workdir / _BEST, best._asdict())


def read_best(workdir: Path) -> Best | None:
    """The best evaluation of a workdir; None if the run keeps no best checkpoint.

    Raises:
        ValueError: best.json is damaged.
    """
    record = read_json(workdir / _BEST, missing={})
    if not record:
        return None
    try:
        return Best(str(record["metric"]), int(record["step"]), float(record["score"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{workdir / _BEST} is not that of a run: it needs metric, step, score"
        ) from None


def _report(step: int, error: Exception) -> None:
    print(
        f"checkpoint {step} cannot be read, trying the one before: {_reason(error)}",
        file=sys.stderr,
    )


def _reason(error: Exception) -> str:
    """The operating system's message if TensorStore quotes it, else the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = re.search(r": ([^:]+) \[os_error_code", lines[0])
    return message[1] if message else lines[0][:200]


@contextlib.contextmanager
def _silence_asyncio() -> Iterator[None]:
    """Hides asyncio's log lines about pending reads after one has failed."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _catch_write_errors(folder) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:  # of devices or processes, not of the disk
        raise
    except Exception as error:  # TensorStore has no exception class for a full disk
        raise ValueError(
            f"cannot write checkpoints to {folder}: {_reason(error)}"
        ) from error
