import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from research import sharding

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
    "embed/token/embedding": P("model", "data"),
    "layers/query/kernel": P(None, "data", "model", None),
    "layers/out/kernel": P(None, "model", None, "data"),
    "layers/up/kernel": P(None, "data", "model"),
    "layers/gate/kernel": P(None, "data", "model"),
    "layers/down/kernel": P(None, "model", "data"),
}
MODEL_ONLY = {
    "embed/token/embedding": P("model", None),
    "layers/query/kernel": P(None, None, "model", None),
    "layers/out/kernel": P(None, "model", None, None),
    "layers/up/kernel": P(None, None, "model"),
    "layers/gate/kernel": P(None, None, "model"),
    "layers/down/kernel": P(None, "model", None),
}


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


@pytest.mark.parametrize("fsdp, table", [(True, FSDP), (False, MODEL_ONLY)])
def test_every_parameter_and_its_moments_follow_the_table(fsdp, table):
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    params = tree(SHAPES)
    specs = by_path(sharding.shardings(params, mesh, fsdp=fsdp))
    expected = {f"encoder/{path}": table.get(path) for path in SHAPES}
    for path, spec in expected.items():
        assert specs[path] == (spec or P()), path

    state = jax.eval_shape(optax.adam(1e-3).init, params)
    moments = by_path(sharding.shardings(state, mesh, fsdp=fsdp))
    for path, spec in expected.items():
        found = [s for name, s in moments.items() if name.endswith(path)]
        assert found == [spec or P()] * 2, path
    assert moments["0/count"] == P()


def test_an_axis_that_does_not_divide_is_dropped():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    odd = tree({"layers/up/kernel": (3, 6, 32), "layers/down/kernel": (3, 31, 16)})
    specs = by_path(sharding.shardings(odd, mesh, fsdp=True))
    assert specs["encoder/layers/up/kernel"] == P(None, None, "model")
    assert specs["encoder/layers/down/kernel"] == P(None, None, "data")


def test_a_mesh_without_a_model_axis():
    mesh = sharding.make_mesh({"data": 8})
    specs = by_path(sharding.shardings(tree(SHAPES), mesh, fsdp=True))
    assert specs["encoder/layers/up/kernel"] == P(None, "data", None)


def test_batches_are_split_over_data():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    batch = {
        "rows": np.arange(24).reshape(8, 3),
        "odd": np.arange(6),
        "scalar": np.float32(2.5),
    }
    put = sharding.put_batch(batch, mesh)
    assert put["rows"].sharding.spec == P("data")
    assert put["odd"].sharding.spec == P()
    assert put["scalar"].sharding.spec == P()
    jax.tree.map(np.testing.assert_array_equal, put, batch)


def test_states_are_split_by_rows_on_the_ambient_mesh():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    x = jnp.ones((8, 4))
    assert sharding.split_rows(x) is x
    with jax.set_mesh(mesh):
        assert jax.jit(sharding.split_rows)(x).sharding.spec == P("data")
        assert sharding.split_rows(jnp.ones((6, 4))).sharding.spec != P("data")


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
