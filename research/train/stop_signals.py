"""Signals that end a run after the current step, on all of its processes alike."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step number: whether the run should stop after it.

    SIGTERM and SIGINT stop it; a second SIGINT has its default effect. With several
    processes, a signal to any of them stops all after the same step, by JAX's
    preemption service. Outside of the main thread, where Python cannot set handlers,
    one process alone is not stopped.
    """
    several = jax.process_count() > 1
    received = []
    # With several processes, the handler of SIGTERM is the preemption service's. Python
    # does not know of it, could not put it back, and must not replace it.
    names = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        names = ()
    before = {name: signal.getsignal(name) for name in names}

    def restore():
        for name, handler in before.items():
            signal.signal(name, handler)

    def receive(number, _):
        received.append(number)
        restore()
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(step):
        if several:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(received)

    for name in names:
        signal.signal(name, receive)
    try:
        yield should_stop
    finally:
        restore()
