import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from research import sharding
from research.models.config import bert, decoder
from research.models.encoder import init

SHAPES = {
    "embed/token/embedding": (64, 16),
    "embed/position/embedding": (32, 16),
    "layers/query/kernel": (3, 16, 4, 4),
    "layers/query/bias": (3, 4, 4),
    "layers/out/kernel": (3, 4, 4, 16),
    "layers/up/kernel": (3, 16, 32),
    "layers/gate/kernel": (3, 16, 32),
    "layers/down/kernel": (3, 32, 16),
    "layers/mlp_norm/scale": (3, 16),
}
FSDP = {
    "embed/token/embedding": P("model", "fsdp"),
    "layers/query/kernel": P(None, "fsdp", "model", None),
    "layers/out/kernel": P(None, "model", None, "fsdp"),
    "layers/up/kernel": P(None, "fsdp", "model"),
    "layers/gate/kernel": P(None, "fsdp", "model"),
    "layers/down/kernel": P(None, "model", "fsdp"),
}
MODEL_ONLY = {
    "embed/token/embedding": P("model", None),
    "layers/query/kernel": P(None, None, "model", None),
    "layers/out/kernel": P(None, "model", None, None),
    "layers/up/kernel": P(None, None, "model"),
    "layers/gate/kernel": P(None, None, "model"),
    "layers/down/kernel": P(None, "model", None),
}
SIZES = {"vocab_size": 30_522, "width": 1_024, "depth": 2, "num_heads": 16}
SIZES |= {"mlp": 4_096}


def tree(shapes):
    nested = {}
    for path, shape in shapes.items():
        *folders, name = path.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = jnp.zeros(shape)
    return {"encoder": nested}


def by_path(places):
    leaves = jax.tree_util.tree_leaves_with_path(places)
    return {sharding.path_name(path): place.spec for path, place in leaves}


def test_what_is_left_goes_to_minus_one():
    assert dict(sharding.make_mesh({"data": -1, "model": 2}).shape) == {
        "data": 4,
        "model": 2,
    }
    one = sharding.make_mesh({"data": -1, "model": 1}, jax.devices()[:1])
    assert one.size == 1


@pytest.mark.parametrize("data, model", [(3, 1), (-1, 3), (-1, -1), (0, 8), (16, 1)])
def test_a_mesh_that_does_not_fit_says_so(data, model):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        sharding.make_mesh({"data": data, "model": model})


def test_sizes_of_a_mesh_are_numbers():
    with pytest.raises(ValueError, match="mesh.fsdp is True; it must be a number"):
        sharding.make_mesh({"data": -1, "fsdp": True})


@pytest.mark.parametrize("axis, table", [("fsdp", FSDP), ("data", MODEL_ONLY)])
def test_every_parameter_and_its_moments_follow_the_table(axis, table):
    mesh = sharding.make_mesh({axis: 4, "model": 2})
    params = tree(SHAPES)
    specs = by_path(sharding.shardings(params, mesh))
    expected = {f"encoder/{path}": table.get(path) for path in SHAPES}
    for path, spec in expected.items():
        assert specs[path] == (spec or P()), path

    state = jax.eval_shape(optax.adam(1e-3).init, params)
    moments = by_path(sharding.shardings(state, mesh))
    for path, spec in expected.items():
        found = [s for name, s in moments.items() if name.endswith(path)]
        assert found == [spec or P()] * 2, path
    assert moments["0/count"] == P()


def test_an_axis_that_does_not_divide_is_dropped():
    mesh = sharding.make_mesh({"fsdp": 4, "model": 2})
    odd = tree({"layers/up/kernel": (3, 6, 32), "layers/down/kernel": (3, 31, 16)})
    specs = by_path(sharding.shardings(odd, mesh))
    assert specs["encoder/layers/up/kernel"] == P(None, None, "model")
    assert specs["encoder/layers/down/kernel"] == P(None, None, "fsdp")


def test_large_parameters_without_a_rule_are_split_too():
    mesh = sharding.make_mesh({"fsdp": 4, "model": 2})
    shapes = {"embed/position/embedding": (2_048, 192), "head/kernel": (750, 750)}
    shapes["layers/up/kernel"] = (2, 750, 1_024)  # its rule's axis does not divide
    places = sharding.shardings(jax.eval_shape(lambda: tree(shapes)), mesh)
    specs = by_path(places)
    assert specs["encoder/embed/position/embedding"] == P("fsdp", None)
    assert specs["encoder/head/kernel"] == P(None, None)
    assert specs["encoder/layers/up/kernel"] == P(None, None, "model")


def test_no_large_parameter_or_moment_is_whole():
    mesh = sharding.make_mesh({"fsdp": 8})
    for cfg in (bert(**SIZES, max_len=512), decoder(**SIZES)):
        params = jax.eval_shape(lambda cfg=cfg: init(jax.random.key(0), cfg))
        state = jax.eval_shape(lambda p: (p, optax.adam(1e-3).init(p)), params)
        for place, leaf in zip(
            jax.tree.leaves(sharding.shardings(state, mesh)),
            jax.tree.leaves(state),
            strict=True,
        ):
            assert leaf.size <= 2**18 or "fsdp" in place.spec, (leaf, place)


def test_a_mesh_without_a_model_axis():
    mesh = sharding.make_mesh({"fsdp": 8})
    specs = by_path(sharding.shardings(tree(SHAPES), mesh))
    assert specs["encoder/layers/up/kernel"] == P(None, "fsdp", None)


def test_batches_are_split_over_data_and_fsdp():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    batch = {
        "rows": np.arange(24).reshape(8, 3),
        "odd": np.arange(6),
        "scalar": np.float32(2.5),
    }
    put = sharding.put_batch(batch, mesh)
    assert put["rows"].sharding.spec == P(("data", "fsdp"))
    assert put["odd"].sharding.spec == P()
    assert put["scalar"].sharding.spec == P()
    jax.tree.map(np.testing.assert_array_equal, put, batch)


@pytest.mark.parametrize(
    "shape, spec",
    [
        ((8, 6, 4), P(("data", "fsdp"), "model")),
        ((8, 5, 4), P(("data", "fsdp"))),
        ((6, 6, 4), P(None, "model")),
    ],
)
def test_hidden_states_are_split_by_rows_and_tokens(shape, spec):
    x = jnp.ones(shape)
    assert sharding.split_hidden(x) is x
    with jax.set_mesh(sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})):
        assert jax.jit(sharding.split_hidden)(x).sharding.spec == spec


def test_the_devices_of_a_process_stand_together():
    @dataclasses.dataclass(frozen=True)
    class Device:
        process_index: int
        id: int

    # A TPU slice of 4 x 4 chips, whose processes have 2 x 2 of them
    chips = [Device(i % 4 // 2 + i // 8 * 2, i) for i in range(16)]
    for model in (1, 2, 4):
        mesh = sharding.make_mesh({"data": -1, "model": model}, chips)
        processes = [chip.process_index for chip in mesh.devices.flat]
        assert processes == sorted(processes)
