"""Device mesh, and shardings of parameters by path and of batches."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Axes of a mesh over which a batch is split. Parameters and optimizer moments are split
# over 'fsdp' as well, and layers over 'model' (tensor parallelism).
BATCH_AXES = ("data", "fsdp")
# Leaves with more numbers (1 MiB of float32) are split over 'fsdp' without a rule, too.
LARGE_LEAF = 2**18

Rules = Sequence[tuple[str, P]]
# The first pattern that matches a leaf's path decides. The path of an optimizer moment
# contains the path of its parameter, so it is sharded alike. Of all other leaves the
# large ones are split over 'fsdp' along their longest axis that is divisible. The token
# table is split over 'fsdp' along its width: few vocabulary sizes are divisible, and
# devices then exchange its gradient as rows of the batch, not as a table.
RULES: Rules = (
    (r"embed/token/embedding", P("model", "fsdp")),
    (r"lm_head/kernel", P("model", "fsdp")),
    (r"layers/(query|key|value)/kernel", P(None, "fsdp", "model", None)),
    (r"layers/out/kernel", P(None, "model", None, "fsdp")),
    (r"layers/(gate|up)/kernel", P(None, "fsdp", "model")),
    (r"layers/down/kernel", P(None, "model", "fsdp")),
    (r"layers/experts/(gate|up)/kernel", P(None, None, "fsdp", "model")),
    (r"layers/experts/down/kernel", P(None, None, "model", "fsdp")),
    (r"pooling/(query|key_value|up)/kernel", P("fsdp", "model")),
    (r"pooling/(out|down)/kernel", P("model", "fsdp")),
    # Adapters, a [..., in, rank] and b [..., rank, out], are split like their kernel.
    (r"layers/(query|key|value|gate|up)/lora/a", P(None, "fsdp", None)),
    (r"layers/(query|key|value|gate|up)/lora/b", P(None, None, "model")),
    (r"layers/(out|down)/lora/a", P(None, "model", None)),
    (r"layers/(out|down)/lora/b", P(None, None, "fsdp")),
    (r"(head|detector)/transform/kernel", P("fsdp", "model")),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh of named axes, such as {'data': -1, 'fsdp': 1, 'model': 1}.

    Args:
        shape: Axis sizes in order; one of them may be -1 for the remaining devices.
        devices: Devices of the mesh; None for all devices of the run.
    Raises:
        ValueError: The shape does not fit the devices.
    """
    # Fill in the size that is -1
    devices = jax.devices() if devices is None else list(devices)
    for axis, size in shape.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise ValueError(
                f"mesh.{axis} is {size!r}; it must be a number of devices, or -1 for "
                "what is left"
            )
    sizes = list(shape.values())
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


def shardings(tree: Any, mesh: Mesh, *, rules: Rules = RULES):
    """The sharding of every leaf of a tree of arrays or shapes.

    Without the axes 'fsdp' and 'model', each device holds a full copy (data
    parallelism).

    Args:
        tree: Parameters, a TrainState, or any tree whose paths contain theirs.
        mesh: Mesh with some of the axes 'data', 'fsdp' and 'model'.
        rules: (pattern, spec) rows. A mesh axis that does not exist, or whose size does
            not divide the dimension, is dropped.
    """

    def sharding(path, leaf):
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), P())
        # A leaf with fewer axes than its pattern's spec is replicated
        if leaf.ndim < len(spec):
            spec = P()
        # Keep the axes that exist and that divide their dimension
        fits = [
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        if leaf.size > LARGE_LEAF and "fsdp" not in fits:
            fits = _split_longest(fits, leaf.shape, mesh.shape.get("fsdp", 1))
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _split_longest(spec: Sequence, shape: Sequence[int], devices: int) -> Sequence:
    """The spec with 'fsdp' on the longest axis that is not split and is divisible."""
    spec = [*spec, *[None] * (len(shape) - len(spec))]
    able = [i for i, n in enumerate(shape) if spec[i] is None and n % devices == 0]
    if devices > 1 and able:
        spec[max(able, key=lambda i: shape[i])] = "fsdp"
    return spec


def batch_axes(mesh) -> tuple[str, ...]:
    """The axes of a mesh, or abstract mesh, over which a batch is split."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def count_batch_devices(mesh=None) -> int:
    """Number of parts of a batch on a mesh, by default the ambient one.

    A mesh without batch axes, or no mesh at all, has 1.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def batch_shardings(batch: Any, mesh: Mesh):
    """The sharding of a global batch: leading axes over the mesh, where divisible."""
    devices, axes = count_batch_devices(mesh), batch_axes(mesh)

    def sharding(leaf):
        split = leaf.ndim > 0 and leaf.shape[0] % devices == 0
        return NamedSharding(mesh, P(axes) if split else P())

    return jax.tree.map(sharding, batch)


def find_process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of the equal shares of a batch this process holds.

    Processes whose devices have the same positions along the axes of a batch hold the
    same share.

    Args:
        mesh: Mesh of the devices of all processes.
    Raises:
        ValueError: This process's positions along these axes are not such a share.
    """
    axes = [mesh.axis_names.index(axis) for axis in batch_axes(mesh)]
    rows = np.moveaxis(mesh.devices, axes, range(len(axes)))
    rows = rows.reshape(count_batch_devices(mesh), -1)
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
            f"{positions.tolist()} of a batch's; they must be one of several equal "
            "shares"
        )
    return index, count


def put_batch(batch: Any, mesh: Mesh):
    """This process's share of a batch, as global arrays on the mesh.

    Args:
        batch: Tree of NumPy arrays. Leading axes are split over the mesh, and the
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
                f"{count_batch_devices(mesh)} devices that the mesh splits a batch over"
            )
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(place_leaf, batch)


def split_hidden(x: jax.Array, *, tokens: bool = True) -> jax.Array:
    """Constrains hidden states [B, S, D] to be split over the mesh, where divisible.

    Rows are split over the axes of a batch, and the tokens of a row over 'model'
    (sequence parallelism; Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).
    The training step sets the ambient mesh. Between layers, this makes the compiler
    move the weights of a sharded layer between devices instead of the larger hidden
    states, and a long row's hidden states take memory on all devices of 'model'.

    Args:
        x: [B, S, D].
        tokens: Whether tokens are split; not where heads or features are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes, devices = batch_axes(mesh), count_batch_devices(mesh)
    rows = axes if axes and x.shape[0] % devices == 0 else None
    model = mesh.shape.get("model", 1)
    columns = "model" if tokens and model > 1 and x.shape[1] % model == 0 else None
    if model == 1 and rows is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(rows, columns))


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process alone; with one process, the mesh itself.

    If parameters are split over 'fsdp', all are on 'model', so that parameters too
    large for one device fit; otherwise all are on 'data'.

    Args:
        mesh: Mesh of the devices of all processes.
    """
    if jax.process_count() == 1:
        return mesh
    fsdp = mesh.shape.get("fsdp", 1) > 1
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


def gather_params(tree: Any, mesh: Mesh) -> Any:
    """Copies a tree of arrays, however it is split, to the devices of each process.

    Args:
        tree: Tree of arrays on the mesh.
        mesh: Mesh of the devices of all processes.

    Returns:
        The tree on `local_mesh(mesh)`; with one process the tree itself.
    """
    if jax.process_count() == 1:
        return tree
    # The same devices with an axis of processes, over which nothing is split
    local = local_mesh(mesh)
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


def map_over_data(fn: Callable[..., Any], *arguments: Any, average: bool = True) -> Any:
    """Calls a function on each device's share of the arguments, and averages results.

    Within it, `gather_rows` exchanges rows with the other devices. Without a mesh, with
    one device for the batch, or if some argument does not divide, the function is
    called once, on everything.

    Args:
        fn: Function of the arguments, which returns a tree of float32 means over rows
            or, without `average`, of arrays [n, ...].
        *arguments: Trees of arrays [N, ...], split over the mesh by their leading axis;
            PRNG keys and scalars are equal on all devices.
        average: Whether the results are averaged, or stay split over the mesh.

    Returns:
        The tree of means over the rows of all devices, or of the rows themselves.
    """
    devices, axes = count_batch_devices(), _ambient_batch_axes()
    leaves = [x for x in jax.tree.leaves(arguments) if x.ndim]
    if devices == 1 or any(len(x) % devices for x in leaves):
        return fn(*arguments)

    def run(*shares):
        results = fn(*shares)
        if not average:
            return results
        return jax.tree.map(lambda x: jax.lax.pmean(x, axes), results)

    # Devices along 'model' compute the same: XLA on CPU cannot add bfloat16 rows where
    # it splits some axes by itself
    specs = jax.tree.map(lambda x: P(axes) if x.ndim else P(), arguments)
    out_specs = P() if average else P(axes)
    split = jax.shard_map(run, in_specs=specs, out_specs=out_specs)
    return split(*arguments)


def gather_rows(x: jax.Array) -> jax.Array:
    """The rows [N, ...] of all devices within `map_over_data`; outside, x itself."""
    if not _is_split():
        return x
    return jax.lax.all_gather(x, _ambient_batch_axes(), tiled=True)


def find_first_row(count: int) -> jax.Array | int:
    """Index of this device's first row among all devices', if each one has `count`."""
    return jax.lax.axis_index(_ambient_batch_axes()) * count if _is_split() else 0


def _ambient_batch_axes() -> tuple[str, ...]:
    return batch_axes(jax.sharding.get_abstract_mesh())


def _is_split() -> bool:
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return any(axis in manual for axis in BATCH_AXES)
