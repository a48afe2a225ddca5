import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from research import sharding
from research.losses.token_prediction import cross_entropy
from research.train.flops import matmul_flops
from research.types import VOCABULARY

LABELS = np.arange(4, dtype=np.int32)


def test_products_in_loops_and_gradients_count_as_often_as_they_run():
    def forward(w, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0].sum()

    def flops(function):
        w, x = jnp.ones((3, 4, 4)), jnp.ones((5, 4))
        return matmul_flops(jax.make_jaxpr(jax.jit(function))(w, x).jaxpr)

    once = 3 * 2 * 5 * 4 * 4
    assert flops(forward) == once
    assert flops(jax.grad(forward)) == 3 * once


def test_the_dearest_branch_of_a_conditional_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    flops = matmul_flops(jax.make_jaxpr(either)(jnp.ones((4, 4))).jaxpr)
    assert flops == 2 * 2 * 4 * 4 * 4


def test_products_of_a_scope_count_alone_with_their_gradient():
    def forward(w, table):
        x = jnp.tanh(w @ w)
        total, _ = cross_entropy(x, table, jnp.zeros(9), LABELS, jnp.ones(4), logits=18)
        return total

    def flops(function):
        jaxpr = jax.make_jaxpr(function)(jnp.ones((4, 4)), jnp.ones((9, 4))).jaxpr
        return matmul_flops(jaxpr, VOCABULARY)

    assert flops(forward) == 2 * 4 * 4 * 9
    assert flops(jax.grad(forward)) == 3 * 2 * 4 * 4 * 9


def test_a_program_of_one_device_runs_on_all_of_them():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    halves = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    jaxpr = jax.make_jaxpr(halves)(jnp.ones((8, 3))).jaxpr  # [2, 3] on each device
    assert matmul_flops(jaxpr) == 8 * 2 * 2 * 2 * 3


def test_a_kernel_runs_for_every_cell_of_its_grid():
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] @ x_ref[...]

    block = pl.BlockSpec((4, 4), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct((12, 4), jnp.float32)
    call = pl.pallas_call(
        kernel, grid=(3,), in_specs=[block], out_specs=block, out_shape=shape
    )
    jaxpr = jax.make_jaxpr(call)(jnp.ones((12, 4))).jaxpr
    assert matmul_flops(jaxpr) == 3 * 2 * 4 * 4 * 4
