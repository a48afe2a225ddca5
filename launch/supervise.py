"""Supervision of one of several processes: how it died is said in a sentence."""

import ctypes
import os
import signal
import sys

from launch.main import LOST, STOPPED, log
from research.processes import is_multiprocess

_PDEATHSIG = 1  # the option of Linux's prctl: a signal for when the parent dies
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_CAUSES = {
    signal.SIGTERM: "as it was asked to",
    signal.SIGABRT: "most likely because another process of the run died, see there",
    signal.SIGKILL: "by hand, by the scheduler, or because memory ran out",
}


def supervise() -> None:
    """Goes on in a child process, if this process is one of several of a run.

    The process itself waits for the child and does not return. When a process dies, JAX
    aborts the others, from C++ threads that Python cannot intercept. The supervisor
    outlives its child, says how it died, and exits with code LOST. Call it before
    threads are started.
    """
    if sys.platform != "linux" or not is_multiprocess(os.environ):
        return
    parent = os.getpid()
    # Signals stay pending until the supervisor asks for them
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    child = os.fork()
    if child:
        os._exit(_wait_for(child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # A child never outlives its supervisor, not even one that died before this call
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _wait_for(child: int) -> int:
    """Waits for the end of a child, and returns the exit code for it."""
    while True:
        received = signal.sigwaitinfo(_SIGNALS)
        if received.si_signo != signal.SIGCHLD:
            # The kernel sends a terminal's Ctrl-C (a code above 0) to the child as well
            if received.si_code <= 0:
                os.kill(child, received.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    # A signal ended the child
    name = signal.Signals(-code).name
    cause = _CAUSES.get(-code, "an error outside of Python")
    log(
        f"error: this process was ended by {name}, {cause}; what it had saved is as it "
        "was: start all processes again to resume"
    )
    return {signal.SIGTERM: STOPPED, signal.SIGKILL: LOST, signal.SIGABRT: LOST}.get(
        -code, 1
    )
