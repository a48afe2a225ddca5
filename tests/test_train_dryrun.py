import importlib.util

import jax
import jax.numpy as jnp
import pytest
import toy

from research import parallel
from research.train import dryrun

PROGRAM = """
  %a = f32[8,128]{1,0} all-gather(f32[1,128]{1,0} %x), dimensions={0}
  %b = f32[8,128]{1,0:T(8,128)} all-gather(f32[1,128]{1,0} %y), dimensions={0}
  %c = (bf16[4]{0}, f32[2,1024]{1,0}) all-reduce-start(bf16[4]{0} %z, f32[2,1024] %w)
  %d = f32[2,1024]{1,0} all-reduce-done((bf16[4]{0}, f32[2,1024]{1,0}) %c)
  %e = f32[8] add(f32[8] %all-gather, f32[8] %p)
"""


def test_collectives_are_counted_by_kind_and_shape():
    gather = dryrun.Collective("all-gather", "f32[8,128]", 2, 4096 / 2**20)
    reduce = dryrun.Collective("all-reduce", "f32[2,1024]", 1, (8192 + 8) / 2**20)
    assert dryrun.collectives(PROGRAM) == [reduce, gather]


def test_products_in_loops_and_gradients_count_as_often_as_they_run():
    def forward(w, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0].sum()

    def flops(function):
        w, x = jnp.ones((3, 4, 4)), jnp.ones((5, 4))
        return dryrun.matmul_flops(jax.make_jaxpr(jax.jit(function))(w, x).jaxpr)

    once = 3 * 2 * 5 * 4 * 4
    assert flops(forward) == once
    assert flops(jax.grad(forward)) == 3 * once


def test_batches_of_a_larger_mesh_are_rounded_up():
    mesh = parallel.make_mesh({"data": 8, "model": 1})
    batch = dryrun.abstract_batch(toy.Batches(rows=12)(0), mesh)
    assert batch.tokens.ids.shape == (16, toy.LENGTH)
    assert batch.query.shape == (8,)
    assert batch.query.sharding.spec == jax.P("data")


def test_a_step_is_priced_without_running(capsys):
    report = dryrun.dry_run(toy.experiment(devices=8))
    assert report["parameters"] == toy.VOCAB * toy.WIDTH + toy.WIDTH**2 + toy.WIDTH
    assert report["mesh"] == {"data": 8, "model": 1}
    assert 0 < report["padding"] < 1
    assert report["mebibytes_per_device"]["peak"] > 0
    assert {row["kind"] for row in report["collectives"]} >= {"all-reduce"}
    assert "parameters     200\n" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v5e:4x4", "h100:8"])
def test_a_topology_that_cannot_be_had_says_so(topology):
    if topology == "v5e:4x4" and importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    with pytest.raises(ValueError, match=f"cannot compile for topology '{topology}'"):
        dryrun.dry_run(toy.experiment(), topology=topology)


def test_the_step_compiles_for_a_tpu_slice():
    pytest.importorskip("libtpu")
    report = dryrun.dry_run(toy.experiment(), topology="v5e:4x4")
    assert report["devices"].startswith("16 x TPU")
