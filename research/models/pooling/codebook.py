"""A product quantizer that is trained: nearest centroids, the gradient of soft ones."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from research.transforms.codebooks import CENTROIDS, ProductQuantizer
from research.transforms.pipeline import load_transform
from research.types import Array, Key, Params


def init_codebook(
    key: Key, width: int, parts: int, *, file: str = "", scale: float = 1.0
) -> Params:
    """The parameters of a product quantizer, from a file or random.

    Args:
        key: PRNG key of random centroids.
        width: D, the width of the vectors.
        parts: M, the number of parts of a vector.
        file: A transform `pq(M)` that launch.embed or launch.index wrote; "" for random
            centroids without a rotation.
        scale: Standard deviation of the values of random centroids.

    Returns:
        {"centroids": [M, 256, D / M]} and, of a file that has one, "rotation" [D, D].

    Raises:
        ValueError: M does not divide D, or the file holds no such codes.
    """
    if width % parts:
        raise ValueError(
            f"objective.parts is {parts}; it should divide the width {width} of a "
            "vector"
        )
    shape = (parts, CENTROIDS, width // parts)
    if not file:
        return {"centroids": scale * jax.random.normal(key, shape)}
    transform = load_transform(Path(file).expanduser())
    quantizer = transform.quantizer
    # Linear maps before the codes would make other vectors of the queries, too
    if not isinstance(quantizer, ProductQuantizer) or transform.maps:
        raise ValueError(f"{file} holds {transform.text}; it should hold pq({parts})")
    if quantizer.centroids.shape != shape:
        raise ValueError(
            f"{file} holds codes of {len(quantizer.centroids)} parts of vectors of "
            f"width {quantizer.width}, not of {parts} parts of width {width}"
        )
    codebook = {"centroids": jnp.asarray(quantizer.centroids)}
    if quantizer.rotation is not None:
        codebook["rotation"] = jnp.asarray(quantizer.rotation)
    return codebook


def quantize_vectors(codebook: Params, x: Array, temperature: float = 1.0) -> Array:
    """What the codes of vectors stand for, with a straight-through gradient.

    The value is that of `ProductQuantizer`: the nearest centroid of each part, rotated
    back. The gradient is that of a choice of centroids by the softmax of the negative
    squared distances; the rotation has none.

    Args:
        codebook: {"centroids": [M, 256, D / M]} and perhaps "rotation" [D, D].
        x: [N, D] float32 vectors.
        temperature: Divisor of the squared distances.

    Returns:
        [N, D] float32. N * M * 256 distances are in memory.
    """
    centroids = codebook["centroids"]
    rotation = jax.lax.stop_gradient(codebook.get("rotation"))
    # Full precision, since a small error may choose another centroid
    multiply = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    parts = x if rotation is None else multiply(x, rotation.T)
    parts = parts.reshape(len(x), len(centroids), -1)  # [N, M, D / M]

    # [N, M, 256] squared distances, without that of the vector, which all share
    squares = jnp.sum(jnp.square(centroids), axis=-1)[None]
    products = jnp.einsum(
        "nmd,mcd->nmc", parts, centroids, precision=jax.lax.Precision.HIGHEST
    )
    distances = squares - 2 * products

    # The nearest centroid: its gradient reaches the centroid
    codes = jnp.argmin(distances, axis=-1, keepdims=True)  # [N, M, 1]
    nearest = jax.vmap(lambda c, i: c[i[:, 0]], (0, 1), 1)(centroids, codes)
    # The mean by the softmax, which only adds its gradient to the vector and distances
    soft = jnp.einsum(
        "nmc,mcd->nmd",
        jax.nn.softmax(-distances / temperature, axis=-1),
        jax.lax.stop_gradient(centroids),
    )
    decoded = nearest + (soft - jax.lax.stop_gradient(soft))
    decoded = decoded.reshape(x.shape)
    return decoded if rotation is None else multiply(decoded, rotation)
