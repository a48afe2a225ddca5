"""Strict JAX for every test, and eight virtual devices."""

import os

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
