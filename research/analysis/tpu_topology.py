"""Devices of a TPU slice that is not at hand: programs are compiled for it, not run."""

import importlib.metadata
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from jax.experimental import topologies

# Folder of the TPU compiler. It is on the path only where it is asked for: with it, JAX
# looks for TPUs at every start, and says so.
LIBTPU = Path("~/.cache/embax/libtpu").expanduser()
# There is no TPU machine to ask for its kind and neighbors, and other processes may
# compile at this time.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find_slice_devices(topology: str, *, cache: Path = LIBTPU) -> list[jax.Device]:
    """The devices of a TPU slice, for programs that are compiled and not run.

    Args:
        topology: Chip and shape of the slice, such as 'v5e:4x4'.
        cache: Folder of the TPU compiler (libtpu); pip installs it there if this
            environment has none, in the version that JAX asks for.

    Raises:
        ValueError: The topology is unknown, or libtpu cannot be installed.
    """
    add_libtpu(cache)
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    # A host has 2 x 2 chips, or all of a slice that is smaller
    shape = [
        int(size) for size in topology.partition(":")[2].split("x") if size.isdigit()
    ]
    options = {}
    if 0 < math.prod(shape) < 4:
        options["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
    try:
        description = topologies.get_topology_desc(topology, platform="tpu", **options)
        return list(description.devices)
    except Exception as error:  # unknown names raise various things
        raise ValueError(
            f"cannot compile for topology {topology!r}: it should be a chip and the "
            "shape of its slice, such as v5e:4x4, v5p:4x4x4 or v6e:16x16"
        ) from error


def add_libtpu(cache: Path = LIBTPU) -> str:
    """Puts libtpu on the path of this process, and returns its version.

    Raises:
        ValueError: This environment has no libtpu, and pip cannot install it.
    """
    if importlib.util.find_spec("libtpu") is None:
        (requirement,) = (
            text.partition(";")[0].strip()
            for text in importlib.metadata.requires("jax")
            if text.startswith("libtpu")
        )
        folder = cache / requirement.replace("*", "x")
        if not folder.exists():
            _install_libtpu(requirement, folder)
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    return importlib.metadata.version("libtpu")


def _install_libtpu(requirement: str, folder: Path) -> None:
    print(f"installing {requirement} into {folder} ...", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: into another folder, and renamed
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        target = Path(parent) / "libtpu"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--target", str(target), requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise ValueError(
                f"compiling for a TPU needs {requirement}, which pip cannot install: "
                f"{lines[-1]}"
            )
        if not folder.exists():  # another process may have been faster
            target.rename(folder)
