"""InfoNCE whose documents pass through all devices, to compare with an all-gather."""

import jax
import jax.numpy as jnp

from research import sharding
from research.losses.similarity import cosine, own_document_scores
from research.types import Array


def compute_ring_infonce(q: Array, d: Array, *, temperature: float) -> Array:
    """InfoNCE of each query against the documents of all devices, [b] float32.

    Each device compares its queries with one device's documents at a time, and then
    passes these on to its neighbor; a running log-sum-exp is all that it keeps. The
    gradient goes around the ring once more.

    Args:
        q: [b, D] queries of this device, within `sharding.map_over_data`.
        d: [b, D] their positives.
        temperature: Divisor of the cosines.
    """
    devices = sharding.count_batch_devices()
    axes = sharding.batch_axes(jax.sharding.get_abstract_mesh())
    neighbors = [(i, (i + 1) % devices) for i in range(devices)]

    @jax.checkpoint
    def add_scores(highest, total, d):
        # [b, b] logits of one device's documents; [b] largest logit, and sum of exp
        logits = cosine(q, d) / temperature
        new = jnp.maximum(highest, logits.max(1))
        scaled = jnp.exp(logits - new[:, None])
        return new, total * jnp.exp(highest - new) + scaled.sum(1)

    def step(carry, _):
        highest, total, d = carry
        highest, total = add_scores(highest, total, d)
        return (highest, total, jax.lax.ppermute(d, axes, neighbors)), None

    positives = own_document_scores(q, d, "cosine")[:, 0] / temperature  # [b]
    # The positives are among the logits, so that their maximum is a first one
    carry = (positives, jnp.zeros_like(positives), d)
    (highest, total, _), _ = jax.lax.scan(step, carry, None, length=devices)
    return highest + jnp.log(total) - positives
