"""Encoding a batch chunk by chunk with the whole batch's gradient."""

import functools

import jax
import jax.numpy as jnp

from research.types import Array, Encode, Key, Params, Tokens


def encode_in_chunks(encode: Encode, chunks: int) -> Encode:
    """Encodes the rows in chunks, recomputing each in the backward pass.

    The loss still sees the whole batch, so value and gradient are those of encoding
    it at once (GradCache, Gao et al. 2021), while activations of one chunk are alive
    at a time. Row i goes to chunk i % chunks, so that every chunk stays spread over
    all devices. The chunks' dropout keys are inputs of the map: the recomputation
    draws the same masks.

    Args:
        encode: (params, tokens [R, S], key) -> [R*M, ...].
        chunks: how many chunks; they divide R.

    Returns:
        a function like `encode`.

    Raises:
        ValueError: on call, if the rows do not divide into the chunks.
    """
    if chunks == 1:
        return encode

    def run(params: Params, tokens: Tokens, key: Key | None) -> Array:
        rows = tokens.token_ids.shape[0]
        if rows % chunks:
            raise ValueError(f"{rows} rows do not divide into {chunks} chunks")

        def split(x):
            return jnp.swapaxes(x.reshape(rows // chunks, chunks, *x.shape[1:]), 0, 1)

        @functools.partial(
            jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable
        )
        def one(xs):
            return encode(params, *xs)

        keys = None if key is None else jax.random.split(key, chunks)
        z = jax.lax.map(one, (jax.tree.map(split, tokens), keys))
        z = z.reshape(chunks, rows // chunks, -1, *z.shape[2:])
        return jnp.swapaxes(z, 0, 1).reshape(-1, *z.shape[3:])

    return run


def num_chunks(batch_size: int, micro_batch: int) -> int:
    """Number of chunks that a batch is encoded in.

    Raises:
        ValueError: the batch does not divide into micro-batches of that size.
    """
    if micro_batch <= 0:
        return 1
    if batch_size % micro_batch:
        raise ValueError(
            f"batch_size {batch_size} does not divide by micro_batch {micro_batch}"
        )
    return batch_size // micro_batch
