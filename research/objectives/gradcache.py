"""GradCache: encodes a batch chunk by chunk, with the gradient of the full batch."""

import functools

import jax
import jax.numpy as jnp

from research.types import Array, Encode, Key, Params, Tokens


def encode_in_chunks(encode: Encode, chunks: int) -> Encode:
    """Makes an encode function that processes the rows in rematerialized chunks.

    The loss is still computed on the full batch, so its value and gradient equal those
    of encoding the batch at once (GradCache, Gao et al. 2021), but only the activations
    of one chunk are in memory at a time. Row i goes to chunk i % chunks, so that all
    devices hold rows of every chunk. The dropout keys of the chunks are inputs of the
    map, so that the recomputation uses the same dropout masks.

    Args:
        encode: (params, tokens [R, S], key) -> [R*M, ...].
        chunks: Number of chunks, which divides R.

    Returns:
        A function with the signature of `encode`.

    Raises:
        ValueError: When called, the number of rows is not divisible by the chunks.
    """
    if chunks == 1:
        return encode

    def encode_rows(params: Params, tokens: Tokens, key: Key | None) -> Array:
        rows = tokens.token_ids.shape[0]
        if rows % chunks:
            raise ValueError(f"{rows} rows do not divide into {chunks} chunks")

        def split_chunks(x):  # [R, ...] -> [chunks, R / chunks, ...]
            return jnp.swapaxes(x.reshape(rows // chunks, chunks, *x.shape[1:]), 0, 1)

        @functools.partial(
            jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable
        )
        def encode_chunk(chunk):
            return encode(params, *chunk)

        keys = None if key is None else jax.random.split(key, chunks)
        # [chunks, R / chunks * M, ...] back to [R * M, ...]
        z = jax.lax.map(encode_chunk, (jax.tree.map(split_chunks, tokens), keys))
        z = z.reshape(chunks, rows // chunks, -1, *z.shape[2:])
        return jnp.swapaxes(z, 0, 1).reshape(-1, *z.shape[3:])

    return encode_rows


def count_chunks(rows: int, min_chunks: int) -> int:
    """Number of chunks, at least `min_chunks`, in which each device encodes its rows.

    Args:
        rows: Number of rows of a device.
        min_chunks: From `count_min_chunks`.
    """
    return next(
        (n for n in range(min_chunks, rows) if rows % n == 0), max(rows, min_chunks)
    )


def count_min_chunks(batch_size: int, micro_batch: int, devices: int) -> int:
    """Number of chunks of at most `micro_batch` pairs in a device's share of a batch.

    Args:
        batch_size: B, number of pairs over all devices.
        micro_batch: Most pairs of a chunk on each device; 0 for a single chunk.
        devices: Number of devices that share the batch.
    """
    if micro_batch <= 0:
        return 1
    return -(-batch_size // (devices * micro_batch))
