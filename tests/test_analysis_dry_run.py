import importlib.util

import jax
import numpy as np
import pytest
import toy

from research import sharding
from research.analysis import dry_run
from research.models.config import bert
from research.objectives import mlm_masking
from research.objectives.registry import OBJECTIVES
from research.types import PretrainingBatch, TokenizerInfo, Tokens

PROGRAM = """
  %a = f32[8,128]{1,0} all-gather(f32[1,128]{1,0} %x), dimensions={0}
  %b = f32[8,128]{1,0:T(8,128)} all-gather(f32[1,128]{1,0} %y), dimensions={0}
  %c = (bf16[4]{0}, f32[2,1024]{1,0}) all-reduce-start(bf16[4]{0} %z, f32[2,1024] %w)
  %d = f32[2,1024]{1,0} all-reduce-done((bf16[4]{0}, f32[2,1024]{1,0}) %c)
  %e = f32[8] add(f32[8] %all-gather, f32[8] %p)
"""


def test_collectives_are_counted_by_kind_and_shape():
    gather = dry_run.Collective("all-gather", "f32[8,128]", 2, 4096 / 2**20)
    reduce = dry_run.Collective("all-reduce", "f32[2,1024]", 1, (8192 + 8) / 2**20)
    assert dry_run.collectives(PROGRAM) == [reduce, gather]


@pytest.mark.parametrize("name", ["mlm", "mae_lm"])
def test_the_vocabulary_is_priced_with_and_without_the_buffer(name):
    cfg = bert(vocab_size=60, width=8, depth=1, num_heads=1, mlp=8, max_len=32)
    objective = OBJECTIVES[name](cfg, TokenizerInfo(60, 4, (0, 1, 2, 3, 4)), ratio=0.25)
    ids = np.ones((2, 32), np.int32)
    batch = PretrainingBatch(Tokens(ids, ids, ids > 0), ids)
    key = jax.random.key(0)
    parts = toy.experiment()._replace(objective=objective)
    report = dry_run.vocabulary_teraflops(
        parts, (*jax.eval_shape(objective.init, key), batch, key)
    )
    whole = report["ungathered_vocabulary_teraflops"] * 1e12
    assert whole == 3 * 2 * 2 * 32 * 8 * 60
    places = 8 if name == "mae_lm" else mlm_masking.buffer_size(32, 0.25)
    assert report["vocabulary_teraflops"] * 1e12 == whole * places / 32


def test_batches_of_a_larger_mesh_are_rounded_up():
    mesh = sharding.make_mesh({"data": 8, "model": 1})
    batch = dry_run.abstract_batch(toy.Batches(rows=12)(0), mesh)
    assert batch.tokens.token_ids.shape == (16, toy.LENGTH)
    assert batch.query_index.shape == (8,)
    assert batch.query_index.sharding.spec == jax.P("data")


def test_a_step_is_priced_without_running(capsys):
    report = dry_run.dry_run(toy.experiment(devices=8))
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
        dry_run.dry_run(toy.experiment(), topology=topology)


def test_the_step_compiles_for_a_tpu_slice():
    pytest.importorskip("libtpu")
    report = dry_run.dry_run(toy.experiment(), topology="v5e:4x4")
    assert report["devices"].startswith("16 x TPU")
