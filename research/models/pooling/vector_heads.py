"""Poolings that map another pooling's vector: sparse latents, binary codes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.pooling import basic
from research.models.pooling.basic import LearnedPooling
from research.models.pooling.splade import keep_largest
from research.transforms.normalize import l2_normalize
from research.types import Array, Key, Params, Pool

# Poolings whose vectors of length 1 are mapped.
BASES: dict[str, Pool] = {
    "mean": basic.mean_pool,
    "cls": basic.cls_pool,
    "last": basic.last_token_pool,
}


def csr(
    *, latents: int = 1_536, k: int = 32, base: str = "mean", unit: bool = True
) -> LearnedPooling:
    """Sparse latents of a text's vector (Wen et al. 2025, CSR).

    The encoder of a sparse autoencoder with tied weights, whose k largest latents are
    kept if they are positive. The objective `sparse_autoencoder` trains it.

    Args:
        latents: H, number of latents; the authors take four times the width.
        k: Number of latents that are kept.
        base: Pooling whose vector is encoded.
        unit: Whether the vector is scaled to length 1 before.
    """
    check_option("pool.base", base, BASES)
    if not 1 <= k <= latents:
        raise ValueError(f"pool.k is {k}; allowed: 1 ... {latents}, the latents")

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del params
        # Columns of length 1, as a random dictionary
        kernel = jax.random.normal(key, (latents, cfg.width))
        return {
            "kernel": l2_normalize(kernel).T,
            "bias": jnp.zeros(latents),
            "center": jnp.zeros(cfg.width),
        }

    def encode(weights: Params, x: Array) -> Array:
        return select_latents(compute_latents(weights, x), k)

    pooling = _map_vectors(encode, base, unit)
    return pooling._replace(init=init, width=lambda cfg: latents, kind="sparse")


def compute_latents(weights: Params, x: Array) -> Array:
    """Latents [..., H] of vectors [..., D] before some are selected."""
    centered = x - jnp.broadcast_to(weights["center"], x.shape)
    a = _project(centered, weights["kernel"])
    return a + jnp.broadcast_to(weights["bias"], a.shape)


def select_latents(a: Array, k: int) -> Array:
    """The k largest of the latents [..., H] if they are positive; 0 for others."""
    return jax.nn.relu(keep_largest(a, k))


def bebr(*, dim: int = 256, rounds: int = 1, base: str = "mean") -> LearnedPooling:
    """Recurrent binary codes of a text's vector (Gan et al. 2023, BEBR).

    A code is the sum of rounds + 1 planes of signs, each with half the weight of the
    one before: -1.5, -0.5, 0.5 or 1.5 with one round, which `int2(limit=2.0)` stores in
    2 bits. A plane has the signs of what the planes before leave of the vector. The
    layers are linear; the authors also use two with a batch norm.

    Args:
        dim: K, number of values of a code.
        rounds: U, number of planes after the first.
        base: Pooling whose vector, scaled to length 1, is encoded.
    """
    check_option("pool.base", base, BASES)
    if dim < 1 or rounds < 0:
        raise ValueError(
            f"pool.dim is {dim} and pool.rounds {rounds}; allowed: >= 1, 0"
        )

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del params
        # All rounds start from the same random directions, and vectors from their sums
        kernel = jax.random.normal(key, (cfg.width, dim))
        layer = {"residual": kernel, "rebuild": kernel.T}
        return {"first": kernel, "rounds": {str(t): layer for t in range(rounds)}}

    pooling = _map_vectors(encode_recurrent_bits, base)
    return pooling._replace(init=init, width=lambda cfg: dim)


def encode_recurrent_bits(weights: Params, x: Array) -> Array:
    """Codes [..., K] of vectors [..., D] of length 1.

    Args:
        weights: {"first": [D, K], "rounds": {"0": {"rebuild": [K, D], "residual":
            [D, K]}, ...}}.
        x: The vectors.

    Returns:
        Odd multiples of 2^-U between -2 and 2, for U rounds.
    """
    b = take_signs(_project(x, weights["first"]))
    for t in range(len(weights["rounds"])):
        layer = weights["rounds"][str(t)]
        # What the code so far does not say of the vector
        rest = x - l2_normalize(_project(b, layer["rebuild"]))
        b = b + 2.0 ** -(t + 1) * take_signs(_project(rest, layer["residual"]))
    return b


def take_signs(x: Array) -> Array:
    """-1 or 1, 1 for 0; the gradient is that of x between -1 and 1, and 0 elsewhere."""
    clipped = jnp.clip(x, -1.0, 1.0)
    signs = jnp.where(x >= 0, 1.0, -1.0)
    return clipped + jax.lax.stop_gradient(signs - clipped)


def _map_vectors(
    encode: Callable[[Params, Array], Array], base: str, unit: bool = True
) -> LearnedPooling:
    """A pooling that encodes the vectors of another one."""

    def pool_vectors(tokens: Array, mask: Array) -> Array:
        x = BASES[base](tokens, mask)  # [B, M, D]
        return l2_normalize(x) if unit else x

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        del cfg
        return encode(params["pooling"], pool_vectors(tokens, mask))

    return LearnedPooling(None, pool, encode_vectors=encode, base=pool_vectors)


def _project(x: Array, kernel: Array) -> Array:
    # Full precision, since a small error may choose another latent or sign
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
