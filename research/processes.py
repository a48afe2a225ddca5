"""Several processes of one run: their start, what one does for all, and their end.

Functions import JAX themselves, so that a command can ask `is_multiprocess` at once.
"""

import faulthandler
import itertools
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

# Environment variables that tell of several processes: SLURM, Open MPI, GKE, manual.
_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_ADDRESSES = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
# Errors of the collectives of CPUs (Gloo), GPUs (NCCL) and of the coordinator.
_LOST = re.compile(
    r"gloo|nccl|connection|socket|heartbeat|unavailable|unhealthy|barrier", re.I
)
_LAST_SECONDS = 2
_GRACE_SECONDS = 60
_CALLS = itertools.count()  # numbers the calls of `call_on_first`, alike everywhere


def initialize(
    *, stop_together: bool = False, timeout: int = 300, heartbeat_timeout: int = 30
) -> None:
    """Joins the processes of a multi-host run; does nothing in a single-process one.

    Call it before JAX initializes its devices. SLURM, Open MPI and GKE are detected.
    On Cloud TPU machines set JAX_NUM_PROCESSES, the number of hosts, and elsewhere also
    JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID.

    Args:
        stop_together: Whether SIGTERM only asks all processes to stop after the same
            step (`train.stop_signals`), instead of ending this process.
        timeout: Seconds to wait for the other processes. Then this process ends, with
            exit code 1 and a sentence about the usual causes.
        heartbeat_timeout: Seconds without a sign of life after which a process counts
            as dead; JAX then ends the others.

    Raises:
        ValueError: JAX refuses the addresses or numbers of the processes.
    """
    if not is_multiprocess(os.environ):
        return
    import jax

    # absl prints the stacks of a process that is aborted. JAX aborts processes because
    # of others, for which stacks are no explanation.
    faulthandler.disable()
    # SLURM, Open MPI and TPU pods are detected by JAX
    count, index = (
        int(os.environ[name]) if name in os.environ else None
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.config.update("jax_enable_preemption_service", stop_together)
    # Past its own limit JAX aborts the process: a thread gives the causes before
    watchdog = threading.Timer(timeout, _give_up, [timeout])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            initialization_timeout=timeout + _GRACE_SECONDS,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"this process cannot join the run: {reason}") from error
    finally:
        watchdog.cancel()


def _give_up(seconds: int) -> None:
    """Ends a process that has waited too long for the others."""
    count = os.environ.get("JAX_NUM_PROCESSES", "all")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "the first host")
    print(
        f"error: the processes of this run did not find each other within {seconds} s; "
        f"usual causes: the command was not started {count} times, once for every "
        f"JAX_PROCESS_ID; {address} is not where process 0 runs; or a firewall closes "
        "that port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def is_multiprocess(environ: Mapping[str, str]) -> bool:
    """Whether environment variables tell of a run of several processes."""
    if any(environ.get(name) for name in _ADDRESSES):
        return True
    lists = [environ.get(name, "") for name in _HOSTS]
    if any("," in hosts and " " not in hosts for hosts in lists):
        return True  # without a TPU, libtpu stores an error message there
    return any(int(environ.get(name) or 1) > 1 for name in _SIZES)


def call_on_first(
    function: Callable[[], Any], action: str, *, timeout: int = 3600
) -> Any:
    """Calls a function on the first process, while the others wait for its end.

    All processes must make the same calls in the same order.

    Args:
        function: The function; with one process it is simply called.
        action: What it does, for the error message, such as "writing the tokenizer".
        timeout: Seconds to wait for the first process.

    Returns:
        The function's result on the first process, None on the others.

    Raises:
        ValueError: The function raised a ValueError or an OSError (on every process
            then), or took longer than the timeout.
    """
    import jax
    from jax._src import distributed  # its store has no public name; Orbax uses it too

    if jax.process_count() == 1:
        return function()
    # The store keeps a key for the life of the run: one key per call
    key, store = f"embax/first/{next(_CALLS)}", distributed.global_state.client
    if jax.process_index() == 0:
        try:
            result = function()
        except (ValueError, OSError) as error:
            store.key_value_set(key, f"error: {error}")
            raise
        store.key_value_set(key, "done")
        return result
    try:
        message = store.blocking_key_value_get(key, timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        if explain_lost_process(error):
            raise
        raise ValueError(
            f"the first process of this run has not finished {action} within "
            f"{timeout} s; look at its messages for the reason"
        ) from error
    if message != "done":
        raise ValueError(message.removeprefix("error: "))
    return None


def explain_lost_process(error: Exception) -> str | None:
    """The sentence for an error that the death of another process causes, else None."""
    import jax

    if jax.process_count() == 1 or not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    reason = str(error).splitlines()[0]
    if not _LOST.search(reason):
        return None
    return (
        f"another process of this run has died or cannot be reached ({reason}); what "
        "this one had saved is as it was: start all processes again to resume"
    )


def is_joined() -> bool:
    """Whether this process has joined others by `initialize`."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the first of a run, or its only one."""
    return not is_joined() or sys.modules["jax"].process_index() == 0


def leave(code: int) -> None:
    """Ends this process of several at once, without waiting for the others.

    The usual exit waits in a barrier for the other processes, and these wait for this
    one in their next step. If this one is missing, JAX ends them.
    """
    # Without the first process, JAX ends all: let them give their reasons before
    if is_first():
        time.sleep(_LAST_SECONDS)
    os._exit(code)


def stop_with_parent() -> None:
    """Ends this process of `multiprocessing` when its parent has died.

    Workers of a pool wait for their next task forever if the parent was killed.
    """

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
