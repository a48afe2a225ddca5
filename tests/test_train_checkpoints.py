import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from research import sharding
from research.train import checkpoints
from research.train.experiment import abstract_state
from research.train.step import init_state
from research.types import TrainState


def state(step, devices=1):
    parts = toy.experiment()
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1}, jax.devices()[:devices])
    start = init_state(*parts.objective.init(jax.random.key(step)), parts.tx)
    start = TrainState(jnp.int32(step), start.params, {}, start.opt_state)
    target = abstract_state(parts, mesh)
    return jax.device_put(start, jax.tree.map(lambda x: x.sharding, target)), target


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 1 and 2."""
    manager = checkpoints.open_manager(tmp_path / "c", keep=2)
    for step in (1, 2):
        checkpoints.save(manager, state(step)[0])
    checkpoints.wait(manager)
    manager.close()
    return tmp_path / "c"


def restore(folder, devices=1):
    manager = checkpoints.open_manager(folder, keep=2)
    restored = checkpoints.restore(manager, state(0, devices)[1])
    steps = sorted(manager.all_steps())
    manager.close()
    return restored, steps


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_state_comes_back_bit_equal_on_any_mesh(folder, devices):
    restored, _ = restore(folder, devices)
    equal(restored, state(2)[0])
    table = restored.params["encoder"]["embed"]["token"]["embedding"]
    assert len(table.sharding.device_set) == devices


def test_parameters_are_read_without_a_target(folder):
    params = checkpoints.restore_params(folder)[1]
    equal(params, state(2)[0].params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_no_checkpoint(tmp_path):
    restored, steps = restore(tmp_path / "c")
    assert restored is None and steps == []
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.restore_params(tmp_path / "missing")


def largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def delete_item(folder):
    shutil.rmtree(folder / "params")


def delete_largest(folder):
    largest(folder).unlink()


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_manifests(folder):
    for path in folder.rglob("manifest.ocdbt"):
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [delete_item, delete_largest, truncate, truncate_manifests]
)
def test_a_damaged_newest_one_falls_back(folder, damage, capfd):
    damage(folder / "2")
    params = checkpoints.restore_params(folder)[1]
    if (
        damage is not delete_largest and damage is not truncate
    ):  # may be in the other item
        equal(params, state(1)[0].params)
    restored, steps = restore(folder)
    equal(restored, state(1)[0])
    assert steps == [1]
    assert "checkpoint 2 cannot be read, trying the one before" in capfd.readouterr()[1]


def test_one_wrong_bit_is_found(tmp_path, capfd):
    manager = checkpoints.open_manager(tmp_path, keep=2)
    random = np.random.default_rng(0)
    for step in (1, 2):
        values = jnp.asarray(random.normal(size=50_000), jnp.float32)
        checkpoints.save(manager, TrainState(jnp.int32(step), {"w": values}, {}, ()))
    checkpoints.wait(manager)
    manager.close()
    before = checkpoints.restore_params(tmp_path)[1]["w"]
    path = largest(tmp_path / "2" / "params")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert (checkpoints.restore_params(tmp_path)[1]["w"] != before).all()
    assert "checkpoint 2 cannot be read" in capfd.readouterr().err


def test_a_step_can_be_written_again_after_a_fallback(folder):
    truncate_manifests(folder / "2")
    manager = checkpoints.open_manager(folder, keep=2)
    checkpoints.restore(manager, state(0)[1])
    checkpoints.save(manager, state(2)[0])
    checkpoints.wait(manager)
    equal(checkpoints.restore(manager, state(0)[1]), state(2)[0])
    manager.close()


def test_nothing_is_removed_when_nothing_fits(folder, capfd):
    other = state(0)[1]
    wrong = jax.ShapeDtypeStruct((3, 5), jnp.float32, sharding=other.step.sharding)
    target = TrainState(other.step, {"other": wrong}, {}, other.opt_state)
    manager = checkpoints.open_manager(folder, keep=2)
    with pytest.raises(ValueError, match=r"none of the checkpoints \[2, 1\]"):
        checkpoints.restore(manager, target)
    assert sorted(manager.all_steps()) == [1, 2]
    manager.close()


def test_kept_are_the_newest_and_the_multiples(tmp_path):
    manager = checkpoints.open_manager(tmp_path, keep=2, keep_every=4)
    for step in range(2, 14, 2):
        checkpoints.save(manager, state(step)[0])
    checkpoints.wait(manager)
    assert sorted(manager.all_steps()) == [4, 8, 10, 12]
    manager.close()


def test_training_on_does_not_change_what_is_being_saved(tmp_path):
    mesh = sharding.make_mesh({"data": -1, "model": 1}, jax.devices()[:1])
    place = jax.NamedSharding(mesh, jax.P())
    start = {"w": jax.device_put(np.ones(2_000_000, np.float32), place)}
    number = jax.device_put(np.int32(1), place)
    manager = checkpoints.open_manager(tmp_path, keep=2)
    checkpoints.save(manager, TrainState(number, start, {}, ()))
    for _ in range(5):
        start = jax.jit(lambda w: {"w": w["w"] + 1}, donate_argnums=0)(start)
    checkpoints.wait(manager)
    manager.close()
    assert (checkpoints.restore_params(tmp_path)[1]["w"] == 1).all()


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    random = np.random.default_rng(0)
    values = jnp.asarray(random.normal(size=100_000), jnp.float32)
    manager = checkpoints.open_manager(tmp_path)
    checkpoints.save(manager, TrainState(jnp.int32(1), {"w": values}, {}, ()))
    checkpoints.wait(manager)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="cannot write .*: File too large$"):
            checkpoints.save(manager, TrainState(jnp.int32(2), {"w": values}, {}, ()))
            checkpoints.wait(manager)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    manager.close()
    assert [p.name for p in tmp_path.iterdir() if p.name.isdigit()] == ["1"]
    np.testing.assert_array_equal(checkpoints.restore_params(tmp_path)[1]["w"], values)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "c").write_text("a file")
    with pytest.raises(ValueError, match="cannot write checkpoints to .*c: "):
        checkpoints.open_manager(tmp_path / "c")
