"""Losses of a mixture of sources, of which each may have its own."""

from collections.abc import Mapping

from research.types import Array, Key, Labels, SizeLoss


def select_source_loss(losses: Mapping[str, SizeLoss]) -> SizeLoss:
    """The loss that the labels of a batch name.

    The name is a part of the batch's structure, not an array: a training step is
    compiled once for each loss, and computes no other.

    Args:
        losses: Losses over sizes by the name in `Labels.loss`, all of the same layers;
            "" is that of batches without a name.
    """

    def loss_of_source(q: Array, d: Array, labels: Labels, key: Key):
        return losses[labels.loss or ""].loss(q, d, labels, key)

    return SizeLoss(loss_of_source, losses[""].needs_all_layers)
