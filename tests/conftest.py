"""Strict JAX for every test, and eight virtual devices."""

import os
import tomllib
from pathlib import Path

import jax
import pytest

from launch import main
from research import sharding

main.order_collectives()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tests compile a thousand small programs and run each once or twice. launch/test.sh
# --all compiles them as users do.
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0":
    jax.config.update("jax_disable_most_optimizations", True)
    # A fourth of the time to compile; commands that tests start inherit them.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"


# {file: {function: the cases that run by default}}; the others are slow.
CASES = tomllib.loads((Path(__file__).parent / "cases.toml").read_text())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leaves to launch/test.sh --all the cases that cases.toml does not list."""
    for item in items:
        functions = CASES.get(item.path.stem.removeprefix("test_"), {})
        cases = functions.get(getattr(item, "originalname", item.name))
        case = item.callspec.id if hasattr(item, "callspec") else ""
        if cases is not None and case not in cases:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def one_device(monkeypatch):
    """Runs have one device, for which there is a third less to compile."""
    make_mesh = sharding.make_mesh

    def first(shape, devices=None):
        return make_mesh(shape, devices or jax.devices()[:1])

    monkeypatch.setattr(sharding, "make_mesh", first)
