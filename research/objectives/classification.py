"""Classification of pairs by a head on both embeddings (InferSent, Sentence-BERT)."""

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling
from research.objectives.contrastive import contrastive
from research.objectives.inputs import reads_pairs
from research.types import (
    Array,
    Batch,
    Key,
    Labels,
    LossOutput,
    Objective,
    Params,
    Pool,
    SizeLoss,
)


@reads_pairs
def classify_pairs(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    classes: int = 3,
    micro_batch: int = 0,
) -> Objective:
    """Trains a softmax classifier of pairs, and the encoder through it.

    Conneau et al. 2017 (InferSent), section 3.1: the classifier, here one linear layer,
    reads u, v, |u - v| and u * v for the embeddings u of the query and v of its first
    document. It is not used for embedding.

    Args:
        cfg: The encoder's shape.
        pool: As in `contrastive`.
        size_loss: Ignored: the classifier is the only loss.
        classes: Number of classes; the labels' scores are their numbers, from 0.
        micro_batch: As in `contrastive`.

    Returns:
        An Objective whose batches are Batch, with the metrics of `contrastive` and
        "class_accuracy".

    Raises:
        ValueError: When called, the labels have no class for each pair.
    """
    del size_loss

    def make_objective(params: Params) -> Objective:
        # The contrastive objective, with the classifier as its loss
        def class_loss(q: Array, d: Array, labels: Labels, key: Key):
            del key
            return measure_classes(params["classifier"], q, d, labels)

        by_class = SizeLoss(class_loss, needs_all_layers=False)
        return contrastive(cfg, pool, by_class, micro_batch=micro_batch)

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, frozen = make_objective({}).init(key, encoder_params)
        # From the four features of a pair to its class
        shape = (4 * cfg.width, classes)
        kernel = 0.02 * jax.random.normal(jax.random.fold_in(key, 3), shape)
        return {
            **params,
            "classifier": {"kernel": kernel, "bias": jnp.zeros(classes)},
        }, frozen

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        return make_objective(params).loss(params, frozen, batch, key)

    return Objective(init, loss)


def measure_classes(params: Params, q: Array, d: Array, labels: Labels):
    """Cross-entropy of the classes of pairs, [B], and the accuracy.

    Args:
        params: {"kernel": [4*D, C], "bias": [C]} of the classifier.
        q: [B, D] queries.
        d: [B*K, D] documents, of which each query's first one is classified with it.
        labels: Labels with the number of the class, score [B].

    Raises:
        ValueError: The labels have no class for each pair.
    """
    if labels.score is None or labels.score.ndim != 1:
        raise ValueError(
            "classify_pairs needs the class of each pair, as the source labeled_pairs "
            "reads it"
        )
    u, v = (x.astype(jnp.float32) for x in (q, d[:: len(d) // len(q)]))
    features = jnp.concatenate([u, v, jnp.abs(u - v), u * v], axis=1)  # [B, 4*D]
    logits = features @ params["kernel"]
    logits += jnp.broadcast_to(params["bias"], logits.shape)  # [B, C]
    number = labels.score.astype(jnp.int32)
    # A class beyond the last one becomes NaN
    log_p = jnp.take_along_axis(
        jax.nn.log_softmax(logits), number[:, None], axis=1, mode="fill"
    )
    correct = (logits.argmax(1).astype(jnp.int32) == number).astype(jnp.float32)
    return -log_p[:, 0], {"class_accuracy": correct.mean()}
