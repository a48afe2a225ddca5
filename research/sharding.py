"""Device mesh, and shardings of parameters by path and of batches."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, P]]
# The first pattern that matches a leaf's path decides. The path of an optimizer moment
# contains the path of its parameter, so it is sharded alike. All other leaves are
# replicated. The token table is split over 'data' along its width: few vocabulary sizes
# are divisible, and devices then exchange its gradient as rows of the batch, not as a
# table.
RULES: Rules = (
    (r"embed/token/embedding", P("model", "data")),
    (r"lm_head/kernel", P("model", "data")),
    (r"layers/(query|key|value)/kernel", P(None, "data", "model", None)),
    (r"layers/out/kernel", P(None, "model", None, "data")),
    (r"layers/(gate|up)/kernel", P(None, "data", "model")),
    (r"layers/down/kernel", P(None, "model", "data")),
    (r"layers/experts/(gate|up)/kernel", P(None, None, "data", "model")),
    (r"layers/experts/down/kernel", P(None, None, "model", "data")),
    (r"pooling/(query|key_value|up)/kernel", P("data", "model")),
    (r"pooling/(out|down)/kernel", P("model", "data")),
    # Adapters, a [..., in, rank] and b [..., rank, out], are split like their kernel.
    (r"layers/(query|key|value|gate|up)/lora/a", P(None, "data", None)),
    (r"layers/(query|key|value|gate|up)/lora/b", P(None, None, "model")),
    (r"layers/(out|down)/lora/a", P(None, "model", None)),
    (r"layers/(out|down)/lora/b", P(None, None, "data")),
    (r"(head|detector)/transform/kernel", P("data", "model")),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh of named axes, such as {'data': -1, 'model': 1}.

    Args:
        shape: Axis sizes in order; one of them may be -1 for the remaining devices.
        devices: Devices of the mesh; None for all devices of the run.
    Raises:
        ValueError: The shape does not fit the devices.
    """
    # Fill in the size that is -1
    devices = jax.devices() if devices is None else list(devices)
    sizes = [int(size) for size in shape.values()]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes, default=0) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {dict(shape)} does not fit {len(devices)} devices; the product of "
            "its sizes must be that number, and one size may be -1 for what is left"
        )
    # The devices of a process stand together along the first axis, so that its share of
    # a batch is one block of rows; `jax.make_mesh` would follow the rings of a TPU's
    # torus across processes. The compiler finds these rings in any order of devices.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    types = (AxisType.Auto,) * len(sizes)
    return Mesh(np.reshape(devices, sizes), tuple(shape), axis_types=types)


def path_name(path) -> str:
    """A leaf's path as text, as patterns match it: 'layers/query/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree: Any, mesh: Mesh, *, fsdp: bool = False, rules: Rules = RULES):
    """The sharding of every leaf of a tree of arrays or shapes.

    Args:
        tree: Parameters, a TrainState, or any tree whose paths contain theirs.
        mesh: Mesh with the axes 'data' and 'model'.
        fsdp: Whether to also split parameters and moments over 'data'; otherwise each
            group of 'model' devices holds a full copy (data parallelism).
        rules: (pattern, spec) rows. A mesh axis that does not exist, or whose size does
            not divide the dimension, is dropped.
    """

    def sharding(path, leaf):
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), P())
        # A leaf with fewer axes than its pattern's spec is replicated
        if leaf.ndim < len(spec):
            spec = P()
        axes = [axis if fsdp or axis != "data" else None for axis in spec]
        # Keep the axes that exist and that divide their dimension
        fits = [
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_shardings(batch: Any, mesh: Mesh):
    """The sharding of a global batch: leading axes over 'data' where divisible."""

    def sharding(leaf):
        split = leaf.ndim > 0 and leaf.shape[0] % mesh.shape["data"] == 0
        return NamedSharding(mesh, P("data") if split else P())

    return jax.tree.map(sharding, batch)


def find_process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of the equal shares of a batch this process holds.

    Processes whose devices have the same positions along 'data' hold the same share.

    Args:
        mesh: Mesh of the devices of all processes.
    Raises:
        ValueError: This process's positions along 'data' are not such a share.
    """
    axis = mesh.axis_names.index("data")
    rows = np.moveaxis(mesh.devices, axis, 0).reshape(mesh.shape["data"], -1)
    process = jax.process_index()
    (positions,) = np.nonzero(
        [any(device.process_index == process for device in row) for row in rows]
    )
    count, remainder = divmod(len(rows), max(1, len(positions)))
    index = int(positions[0]) // len(positions) if len(positions) else 0
    share = np.arange(len(positions)) + index * len(positions)
    if remainder or not np.array_equal(share, positions):
        raise ValueError(
            f"mesh {dict(mesh.shape)}: process {process} has the positions "
            f"{positions.tolist()} of the data axis; they must be one of several equal "
            "shares of it"
        )
    return index, count


def put_batch(batch: Any, mesh: Mesh):
    """This process's share of a batch, as global arrays on the mesh.

    Args:
        batch: Tree of NumPy arrays. Leading axes are split over 'data', and the
            processes' shares are concatenated along them; scalars are equal everywhere.
            With one share, an array whose leading axis is not divisible is replicated.
        mesh: The mesh of the run.
    Raises:
        ValueError: With several shares, a leading axis is not divisible.
    """
    _, hosts = find_process_share(mesh)

    def place_leaf(leaf):
        leaf = np.asarray(leaf)
        shape = (leaf.shape[0] * hosts, *leaf.shape[1:]) if leaf.ndim else ()
        # Shape of the global array, and its sharding
        full_shape = jax.ShapeDtypeStruct(shape, leaf.dtype)
        sharding = batch_shardings(full_shape, mesh)
        if hosts > 1 and leaf.ndim and sharding.spec == P():
            raise ValueError(
                f"{shape[0]} rows in {hosts} shares do not divide over the "
                f"{mesh.shape['data']} devices of the mesh's data axis"
            )
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(place_leaf, batch)


def split_rows(x: jax.Array) -> jax.Array:
    """Constrains x to be split over 'data' along its leading axis, where divisible.

    The training step sets the ambient mesh. Applied to the hidden states between
    layers, it makes the compiler move the weights of a sharded layer between devices
    instead of the larger activations.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "data" not in mesh.shape or x.shape[0] % mesh.shape["data"]:
        return x
    return jax.lax.with_sharding_constraint(x, P("data"))


def local_mesh(mesh: Mesh, *, fsdp: bool = False) -> Mesh:
    """The devices of this process alone; with one process, the mesh itself.

    Args:
        mesh: Mesh of the devices of all processes.
        fsdp: Whether all of them are on 'model', so that parameters too large for one
            device fit; otherwise all are on 'data'.
    """
    if jax.process_count() == 1:
        return mesh
    shape = {"data": 1, "model": -1} if fsdp else {"data": -1, "model": 1}
    return make_mesh(shape, jax.local_devices())


def make_inference_mesh(model: int = 1) -> Mesh | None:
    """The mesh of this process's devices, for a model that each process holds.

    Args:
        model: Number of devices that each copy of the parameters is split over.
    Returns:
        The mesh; None for a single device.
    Raises:
        ValueError: `model` does not divide the number of devices.
    """
    devices = jax.local_devices()
    if len(devices) == model == 1:
        return None
    return make_mesh({"data": -1, "model": model}, devices)


def gather_params(tree: Any, mesh: Mesh, *, fsdp: bool = False) -> Any:
    """Copies a tree of arrays, however it is split, to the devices of each process.

    Args:
        tree: Tree of arrays on the mesh.
        mesh: Mesh of the devices of all processes.
        fsdp: Whether a process splits its copy over its devices, as in `local_mesh`.

    Returns:
        The tree on `local_mesh(mesh, fsdp=fsdp)`; with one process the tree itself.
    """
    if jax.process_count() == 1:
        return tree
    # The same devices with an axis of processes, over which nothing is split
    local = local_mesh(mesh, fsdp=fsdp)
    devices = mesh.devices.reshape(-1, *local.devices.shape)
    copies = shardings(tree, Mesh(devices, ("process", *local.axis_names)))
    gathered = jax.jit(_identity, out_shardings=copies)(tree)

    def make_local(x):
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(local, x.sharding.spec), shards
        )

    return jax.tree.map(make_local, gathered)


def _identity(x):
    return x


def map_over_data(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function on each device's share of the arguments, and averages results.

    Within it, `gather_rows` exchanges rows with the other devices. Without a mesh, with
    one device along 'data', or if some argument does not divide, the function is called
    once, on everything.

    Args:
        fn: Function of the arguments, which returns a tree of float32 means over rows.
        *arguments: Trees of arrays [N, ...], split over 'data' by their leading axis;
            PRNG keys and scalars are equal on all devices.

    Returns:
        The tree of means over the rows of all devices.
    """
    devices = count_data_devices()
    leaves = [x for x in jax.tree.leaves(arguments) if x.ndim]
    if devices == 1 or any(len(x) % devices for x in leaves):
        return fn(*arguments)

    def run(*shares):
        return jax.tree.map(lambda x: jax.lax.pmean(x, "data"), fn(*shares))

    specs = jax.tree.map(lambda x: P("data") if x.ndim else P(), arguments)
    split = jax.shard_map(run, in_specs=specs, out_specs=P(), axis_names={"data"})
    return split(*arguments)


def count_data_devices() -> int:
    """Number of devices that share a batch in the ambient mesh; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("data", 1)


def gather_rows(x: jax.Array) -> jax.Array:
    """The rows [N, ...] of all devices within `map_over_data`; outside, x itself."""
    if not _is_split():
        return x
    return jax.lax.all_gather(x, "data", tiled=True)


def find_first_row(count: int) -> jax.Array | int:
    """Index of this device's first row among all devices', if each one has `count`."""
    return jax.lax.axis_index("data") * count if _is_split() else 0


def _is_split() -> bool:
    return "data" in jax.sharding.get_abstract_mesh().manual_axes
