"""Losses over numbers of vectors per text (MetaEmbed)."""

import jax.numpy as jnp

from research.losses.registry import Loss
from research.types import Array, Key, Labels, SizeLoss

# (vectors of a query, vectors of a document), ...
Groups = tuple[tuple[int, int], ...]


def nested_groups(
    loss: Loss,
    *,
    groups: Groups = ((1, 1), (2, 4), (4, 8), (8, 16), (16, 64)),
    weights: tuple[float, ...] = (),
) -> SizeLoss:
    """Weighted sum of the loss over the first vectors of queries and documents.

    Xiao et al. 2025 (MetaEmbed), matryoshka multi-vector retrieval: the first vectors
    are trained to do without the others.

    Args:
        loss: The base loss, of a similarity of several vectors per text.
        groups: Numbers of vectors of a query and of a document.
        weights: One weight per group; all 1 if empty.

    Raises:
        ValueError: The numbers of weights and groups differ, or a group has more
            vectors than the texts.
    """
    if weights and len(weights) != len(groups):
        raise ValueError(f"{len(weights)} weights are given for {len(groups)} groups")

    def loss_of_groups(q: Array, d: Array, labels: Labels, key: Key):
        del key
        # The base loss of the first vectors of each group: each [B]
        losses = []
        for queries, documents in groups:
            _check_group(queries, documents, q, d)
            losses.append(loss(q[:, :queries], d[:, :documents], labels))  # [B]
        names = [f"task/{queries}x{documents}" for queries, documents in groups]
        metrics = {n: jnp.mean(x) for n, x in zip(names, losses, strict=True)}
        weighted = zip(weights or (1.0,) * len(groups), losses, strict=True)
        return sum(c * x for c, x in weighted), metrics

    return SizeLoss(loss_of_groups, needs_all_layers=False)


def _check_group(queries: int, documents: int, q: Array, d: Array) -> None:
    """Raises ValueError if texts do not have so many vectors."""
    if q.ndim != 3:
        raise ValueError("nested_groups needs several vectors per text: pool=colbert()")
    if not (1 <= queries <= q.shape[1] and 1 <= documents <= d.shape[1]):
        raise ValueError(
            f"the group ({queries}, {documents}) is not in the {q.shape[1]} vectors of "
            f"a query and the {d.shape[1]} of a document"
        )
