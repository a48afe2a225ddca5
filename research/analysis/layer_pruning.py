"""Layer pruning before fine-tuning (L3Prune, Fischer et al. 2024).

This file finds how many blocks to keep; `encoder.truncate_depth` removes the others and
keeps the final norm.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.losses.contrastive import infonce
from research.losses.registry import Loss, score_loss
from research.models.config import EncoderConfig
from research.models.encoder import encode
from research.models.pooling.registry import parse_pooling
from research.types import Array, Batch, Params, max_segments


class PruneDepths(NamedTuple):
    """Numbers of blocks to keep.

    Attributes:
        small: The depth of the smallest loss in the first half.
        large: The depth of the smallest loss in the second half.
    """

    small: int
    large: int


def layer_losses(
    params: Params,
    cfg: EncoderConfig,
    batches: Iterable[Batch],
    *,
    pool: str = "weighted_mean",
    loss: Loss | None = None,
) -> np.ndarray:
    """The mean loss of the embeddings after each block: [L] float64.

    Args:
        params: The encoder's parameters.
        cfg: The encoder's shape.
        batches: Batches of pairs; the authors use 100 batches of 64.
        pool: Pooling, as `parse_pooling` reads it.
        loss: Loss of a batch's embeddings; None for InfoNCE at its default temperature.

    Raises:
        ValueError: There are no batches.
    """
    loss = score_loss(infonce) if loss is None else loss
    batch_losses = jax.jit(partial(_batch_losses, cfg=cfg, pool=pool, loss=loss))
    # [L] losses of each batch, then their mean.
    losses = [
        batch_losses(params, jax.tree.map(jnp.asarray, batch)) for batch in batches
    ]
    if not losses:
        raise ValueError("the losses of layers need at least one batch of pairs")
    return np.mean(np.asarray(losses, np.float64), axis=0)


def find_prune_depths(losses: np.ndarray) -> PruneDepths:
    """The depth of the smallest loss in each half of L blocks.

    Args:
        losses: [L] loss after each block.

    Raises:
        ValueError: There are fewer than two blocks.
    """
    # Depths count from 1, indices from 0.
    middle = len(losses) // 2
    if not middle:
        raise ValueError("an encoder of one block has no depth to prune")
    small = int(np.argmin(losses[:middle])) + 1
    large = middle + int(np.argmin(losses[middle:])) + 1
    return PruneDepths(small, large)


def remaining_depth(depth: int, share: float) -> int:
    """Number of blocks that remain if the last `share` of `depth` blocks is cut.

    Raises:
        ValueError: No block would remain, or the share is not in [0, 1).
    """
    remaining = depth - round(share * depth)
    if not 0 <= share < 1 or remaining < 1:
        raise ValueError(
            f"a share {share} of {depth} blocks to prune leaves none, or is not in "
            "[0, 1)"
        )
    return remaining


def _batch_losses(
    params: Params,
    batch: Batch,
    *,
    cfg: EncoderConfig,
    pool: str,
    loss: Callable[..., Array],
) -> Array:
    """Mean loss of a batch after each block: [L]."""
    size = max_segments(batch.tokens.token_ids.shape[1])
    x = encode(
        params,
        batch.tokens,
        cfg,
        parse_pooling(pool),
        max_segments=size,
        every_layer=True,
    )
    layers = jnp.moveaxis(x, 1, 0)[1:]  # [L, R*M, D], without the embedding layer
    # Queries [L, B, D] and documents [L, B*K, D].
    q, d = layers[:, batch.query_index], layers[:, batch.document_index]
    # A loss per layer.
    pairs = zip(q, d, strict=True)
    return jnp.stack([loss(*pair, batch.labels).mean() for pair in pairs])
