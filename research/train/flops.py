"""FLOPs of a traced program, counted from its matrix products."""

import math

from jax.extend.core import jaxprs_in_params


def matmul_flops(jaxpr, scope: str = "") -> int:
    """Number of floating-point operations in a jaxpr's matrix products, on all devices.

    The body of a loop counts once per iteration. XLA's own count takes it only once, so
    that a scan over layers would look as cheap as a single layer.

    Args:
        jaxpr: The program.
        scope: Name of a `jax.named_scope`; only operations in it, and their gradients,
            are counted. '' for all operations.
    """
    total = 0
    for equation in jaxpr.eqns:
        # A matrix product costs 2 operations per contracted and output element.
        inside = scope in str(equation.source_info.name_stack)
        if inside and equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        # Inner programs run several times: the body of a scan for each of its elements,
        # a kernel for each cell of its grid, a program of one device on every device.
        times = equation.params.get("length", 1)
        if "grid_mapping" in equation.params:
            times = math.prod(equation.params["grid_mapping"].grid)
        if equation.primitive.name == "shard_map":
            sizes = equation.params["mesh"].shape
            times = math.prod(sizes[axis] for axis in _manual_axes(equation.params))
        parts = [
            times * matmul_flops(inner, "" if inside else scope)
            for inner in jaxprs_in_params(equation.params)
        ]
        # Only one branch of a conditional runs; count the most expensive one.
        branches = equation.primitive.name == "cond"
        total += max(parts, default=0) if branches else sum(parts)
    return total


def _manual_axes(params) -> frozenset[str]:
    """Mesh axes over which a shard_map runs; the name differs by the version of JAX."""
    return next(axes for name, axes in params.items() if name.endswith("manual_axes"))
