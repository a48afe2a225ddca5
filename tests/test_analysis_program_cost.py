"""Costs read from compiled programs: loops, slices, windows and rings."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research import sharding
from research.analysis.program_cost import Collective, measure_program

# As a TPU's compiler writes it: a loop of 6 layers without a stated number of trips,
# in which a loop of 2 windows counts by twos; an asynchronous gather; values in VMEM.
TPU = """HloModule jit_f, is_scheduled=true

%window_body (p.1: (f32[2,128], u32[])) -> (f32[2,128], u32[]) {
  %p.1 = (f32[2,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) parameter(0)
  %x.1 = f32[2,128]{1,0:T(8,128)S(1)} get-tuple-element(%p.1), index=0
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  %two = u32[]{:T(128)} constant(2)
  %next.1 = u32[]{:T(128)} add(%i.1, %two)
  %s.1 = (f32[2,128]{1,0}, f32[2,128]{1,0}, u32[]{:S(2)}) collective-permute-start(%x.1), source_target_pairs={{0,1},{1,0}}
  %d.1 = f32[2,128]{1,0:T(8,128)S(1)} collective-permute-done(%s.1)
  ROOT %t.1 = (f32[2,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) tuple(%d.1, %next.1)
}

%window_condition (p.2: (f32[2,128], u32[])) -> pred[] {
  %p.2 = (f32[2,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) parameter(0)
  %i.2 = u32[]{:T(128)} get-tuple-element(%p.2), index=1
  %four = u32[]{:T(128)} constant(4)
  ROOT %less.2 = pred[]{:T(512)} compare(%i.2, %four), direction=LT
}

%layer_body (p.3: (s32[], f32[2,128])) -> (s32[], f32[2,128]) {
  %p.3 = (s32[]{:T(128)}, f32[2,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %copy.3 = s32[]{:T(128)} copy(%i.3)
  %x.3 = f32[2,128]{1,0:T(8,128)S(1)} get-tuple-element(%p.3), index=1
  %zero.3 = u32[]{:T(128)} constant(0)
  %in.3 = (f32[2,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) tuple(%x.3, %zero.3)
  %while.3 = (f32[2,128]{1,0:T(8,128)S(1)}, u32[]{:T(128)}) while(%in.3), condition=%window_condition, body=%window_body
  %y.3 = f32[2,128]{1,0:T(8,128)S(1)} get-tuple-element(%while.3), index=0
  %z.3 = f32[2,128]{1,0:T(8,128)S(1)} add(%y.3, %y.3), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={"window_config":{"estimated_cycles":"50"}}
  %one = s32[]{:T(128)} constant(1)
  %next.3 = s32[]{:T(128)} add(%copy.3, %one)
  ROOT %t.3 = (s32[]{:T(128)}, f32[2,128]{1,0:T(8,128)S(1)}) tuple(%next.3, %z.3)
}

%layer_condition (p.4: (s32[], f32[2,128])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %p.4 = (s32[]{:T(128)}, f32[2,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i.4 = s32[]{:T(128)} get-tuple-element(%p.4), index=0
  ROOT %less.4 = pred[]{:T(512)} compare(%i.4, %six), direction=LT
}

%scatter.all-reduce-scatter (a.5: f32[64,128]) -> f32[4,128] {
  %a.5 = f32[64,128]{1,0} parameter(0)
  %zero.5 = s32[] constant(0)
  %sum.5 = f32[64,128]{1,0} all-reduce(%a.5), replica_groups=mesh['data'=16,'model'=1] {'data'}, to_apply=%add
  ROOT %slice.5 = f32[4,128]{1,0} dynamic-slice(%sum.5, %zero.5, %zero.5), dynamic_slice_sizes={4,128}
}

ENTRY %main (w: f32[8,64,128], x: f32[2,128]) -> f32[2,128] {
  %w = f32[8,64,128]{2,1,0:T(8,128)} parameter(0)
  %x = f32[2,128]{1,0:T(8,128)S(1)} parameter(1)
  %three = s32[]{:T(128)} constant(3)
  %row = f32[1,64,128]{2,1,0:T(8,128)S(1)} dynamic-slice(%w, %three, %three, %three), dynamic_slice_sizes={1,64,128}
  %flat = f32[64,128]{1,0:T(8,128)S(1)} bitcast(%row)
  %part = f32[4,128]{1,0:T(8,128)S(1)} fusion(%flat), kind=kCustom, calls=%scatter.all-reduce-scatter
  %start = (f32[4,128]{1,0:S(1)}, f32[64,128]{1,0}) all-gather-start(%part), replica_groups=[1,16]<=[16], dimensions={0}
  %full = f32[64,128]{1,0} all-gather-done(%start)
  %product = f32[2,64]{1,0} convolution(%x, %full), dim_labels=bf_oi->bf
  %zero = s32[]{:T(128)} constant(0)
  %in = (s32[]{:T(128)}, f32[2,128]{1,0:T(8,128)S(1)}) tuple(%zero, %x)
  %while = (s32[]{:T(128)}, f32[2,128]{1,0:T(8,128)S(1)}) while(%in), condition=%layer_condition, body=%layer_body
  ROOT %out = f32[2,128]{1,0:T(8,128)S(1)} get-tuple-element(%while), index=1
}
"""  # noqa: E501
ROW = 64 * 128 * 4  # bytes of a [64, 128] array


def test_a_tpu_program_is_read_with_its_loops_rings_and_memory_spaces():
    cost = measure_program(TPU)
    gather, permute, scatter = sorted(cost.collectives)
    size = ROW / 2**20
    assert gather == Collective(
        "all-gather", "f32[64,128]", 16, 1, size, 15 / 16 * size
    )
    # 6 layers, each with 2 windows
    assert permute[:4] == ("collective-permute", "f32[2,128]", 2, 12)
    assert permute.wire_mebibytes == permute.mebibytes == 2 * 128 * 4 / 2**20
    # The sum is scattered: half of what an all-reduce sends
    assert scatter[:4] == ("reduce-scatter", "f32[64,128]", 16, 1)
    assert scatter.wire_mebibytes == pytest.approx(15 / 16 * size)
    assert cost.flops == 2 * 2 * 64 * 128
    assert cost.cycles == 6 * 50
    # Main memory: a row of w is read; the gather's result is written and read
    # by the product, whose result is written, as is what each permutation receives
    permuted = 12 * 2 * 128 * 4
    assert cost.traffic == ROW + 2 * ROW + 2 * 64 * 4 + permuted


@pytest.mark.parametrize("batch,heads", [(4, 2), (1, 1)])
def test_a_batched_product_as_a_dilated_convolution_counts_what_meets(batch, heads):
    window = f"size={batch}x{heads} stride={batch - 1 or 1}x{heads - 1 or 1}"
    window += f" lhs_dilate={batch}x{heads}"
    text = f"""
ENTRY %main (q: f32[{batch},{heads},8,16], k: f32[{batch},{heads},8,16]) -> f32[] {{
  %q = f32[{batch},{heads},8,16]{{3,2,1,0}} parameter(0)
  %k = f32[{batch},{heads},8,16]{{3,2,1,0}} parameter(1)
  ROOT %s = f32[{batch},{heads},8,8]{{3,2,1,0}} convolution(%q, %k), window={{{window}}}, dim_labels=01bf_01oi->01bf
}}
"""  # noqa: E501
    assert measure_program(text).flops == batch * heads * 2 * 8 * 8 * 16


def test_collectives_and_products_in_loops_count_as_often_as_they_run():
    mesh = sharding.make_mesh({"data": 8, "model": 1})
    split = NamedSharding(mesh, P(None, "data"))

    def f(w, x):
        # A product with weights that the compiler gathers, in each of 3 layers
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0]

    shapes = (
        jax.ShapeDtypeStruct((3, 32, 32), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P())),
    )
    compiled = jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(*shapes)
    cost = measure_program(compiled.compile().as_text())
    assert max(row.count for row in cost.collectives) == 3
    assert {row.group for row in cost.collectives} == {8}
    # Products of all layers, in full or split over the devices
    flops = 3 * 2 * 16 * 32 * 32
    assert cost.flops in (flops, flops / 8)


def test_the_bytes_of_an_elementwise_program_are_read_and_written_once():
    x = jax.ShapeDtypeStruct((1_000, 100), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sin(x) + 1).lower(x).compile()
    assert measure_program(compiled.as_text()).traffic == 2 * x.size * 4


def test_a_collective_that_is_spread_over_fusions_counts_once():
    gather = "all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}"
    parts = "".join(
        f"""
%fusion.{i} (a: f32[4]) -> f32[8] {{
  %a = f32[4]{{0}} parameter(0)
  ROOT %g = f32[8]{{0}} {gather}
}}
"""
        for i in range(3)
    )
    calls = "".join(
        f"  %f.{i} = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%fusion.{i}\n"
        for i in range(3)
    )
    text = f"""{parts}
ENTRY %main (a: f32[4]) -> f32[8] {{
  %a = f32[4]{{0}} parameter(0)
{calls}  ROOT %r = f32[8]{{0}} add(%f.0, %f.1)
}}
"""
    (row,) = measure_program(text).collectives
    assert row.count == 1 and row.wire_mebibytes == 16 / 2**20


def test_a_ring_sends_what_it_must():
    @functools.cache
    def wire(kind, shape, options="replica_groups={{0,1,2,3}}"):
        text = (
            "ENTRY %m (a: f32[8]) -> f32[8] {\n  %a = f32[8]{0} parameter(0)\n"
            f"  ROOT %r = {shape} {kind}(%a), {options}\n}}\n"
        )
        return measure_program(text).wire_bytes

    assert wire("all-reduce", "f32[8]{0}") == 2 * 3 / 4 * 32
    assert wire("all-gather", "f32[32]{0}") == 3 / 4 * 128
    assert wire("reduce-scatter", "f32[2]{0}") == 3 / 4 * 32
    assert wire("all-to-all", "f32[8]{0}") == 3 / 4 * 32
    pairs = "source_target_pairs={{0,1},{1,0}}"
    assert wire("collective-permute", "f32[8]{0}", pairs) == 32
