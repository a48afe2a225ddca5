"""Product quantization that is trained with the encoder: the light codes of BiDR."""

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.pooling.basic import LearnedPooling
from research.models.pooling.codebook import init_codebook, quantize_vectors
from research.objectives.contrastive import contrastive, ranking_metrics
from research.objectives.inputs import reads_pairs
from research.transforms.normalize import l2_normalize, to_float32
from research.types import (
    Array,
    Batch,
    Key,
    Labels,
    LossOutput,
    Metrics,
    Objective,
    Params,
    Pool,
    SizeLoss,
)


@reads_pairs
def product_quantization(
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    size_loss: SizeLoss,
    *,
    parts: int = 48,
    codebook: str = "",
    unit: bool = True,
    temperature: float = 1.0,
    reconstruction_weight: float = 0.0,
    micro_batch: int = 0,
) -> Objective:
    """Contrasts queries with documents, and with what the documents' codes stand for.

    Xiao et al. 2022 (BiDR), the light codes: the encoder and a product quantizer of its
    documents are trained together; queries are not quantized. The loss is the sum of
    that of the vectors, that of the decoded documents and, weighted, the mean squared
    length of what the codes leave out. A document's code is the nearest centroid of
    each part, with a straight-through gradient (`quantize_vectors`).

    The trained quantizer is the model's transform `pq`, by which launch.embed, index
    and evaluate store documents. Evaluations within the run score the vectors.

    Args:
        cfg: The encoder's shape.
        pool: As in `contrastive`, with one vector per text.
        size_loss: A loss of the last layer.
        parts: M, the number of parts and of bytes per document.
        codebook: File of a transform `pq(M)`, whose centroids the training starts from
            and whose rotation stays; "" for random centroids without a rotation.
        unit: Whether vectors are scaled to length 1 before, as the model embeds with
            config.normalize.
        temperature: Divisor of the squared distances in the gradient, for vectors of
            the squared length D, as those that the authors' layer norm makes. With
            `unit`, it is divided by D.
        reconstruction_weight: Weight of the reconstruction error; the authors use 0 or
            1e-6.
        micro_batch: As in `contrastive`; the codes are computed for the full batch at
            once.

    Returns:
        An Objective whose batches are Batch, with the metrics of `contrastive`, the two
        losses "dense" and "codes", the "reconstruction_error" and the "code_accuracy".

    Raises:
        ValueError: The pooling gives no single dense vector of a text, the loss is one
            of all layers, or `init_codebook` fails.
    """
    is_learned = isinstance(pool, LearnedPooling)
    if is_learned and pool.kind != "dense":
        raise ValueError(
            f"product_quantization needs one vector per text, not {pool.kind} ones"
        )
    if size_loss.needs_all_layers:
        raise ValueError("product_quantization has the full size alone: no size_loss")
    width = pool.width(cfg) if is_learned and pool.width else cfg.width

    def make_objective(params: Params) -> Objective:
        # The contrastive objective, whose loss also quantizes
        def sum_losses(q: Array, d: Array, labels: Labels, key: Key):
            q, d = (to_float32(x) for x in (q, d))
            if unit:
                q, d = l2_normalize(q), l2_normalize(d)
            return compare_codes(params["codebook"], q, d, labels, key)

        by_codes = SizeLoss(sum_losses, needs_all_layers=False)
        return contrastive(cfg, pool, by_codes, micro_batch=micro_batch)

    def compare_codes(
        weights: Params, q: Array, d: Array, labels: Labels, key: Key
    ) -> tuple[Array, Metrics]:
        scale = width if unit else 1  # of vectors whose squared length is D
        decoded = quantize_vectors(weights, d, temperature / scale)  # [B*K, D]
        # [B] of the vectors, and of what the codes stand for
        dense, metrics = size_loss.loss(q, d, labels, key)
        codes, _ = size_loss.loss(q, decoded, labels, key)
        errors = jnp.sum(jnp.square(d - decoded), axis=1)  # [B*K]
        errors = jnp.mean(errors.reshape(len(q), -1), axis=1)
        metrics = {
            **metrics,
            "dense": dense.mean(),
            "codes": codes.mean(),
            "reconstruction_error": errors.mean(),
            "code_accuracy": ranking_metrics(q, decoded)["accuracy"],
        }
        return dense + codes + reconstruction_weight * errors, metrics

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, frozen = make_objective({}).init(key, encoder_params)
        # Random centroids are as long as parts of the vectors
        scale = width**-0.5 if unit else 1.0
        key = jax.random.fold_in(key, 3)
        weights = init_codebook(key, width, parts, file=codebook, scale=scale)
        return {**params, "codebook": weights}, frozen

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        return make_objective(params).loss(params, frozen, batch, key)

    return Objective(init, loss)
