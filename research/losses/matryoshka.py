"""Losses over the sizes of an elastic model: Matryoshka, Starbucks, ESE.

Each function wraps a base loss, which is computed at one size. A size (l, k) is the
first k of D dimensions of the pooled output of block l of L. The metrics are the
unweighted terms of the sum (`size_terms.sum_terms`).
"""

from functools import partial

import chex
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.matryoshka_sampled import (
    mse2d_later,
    mse2d_v1,
    st5_adaptive,
    st6_adaptive,
)
from research.losses.nested_groups import nested_groups
from research.losses.registry import Loss
from research.losses.size_terms import (
    LAYER_WEIGHTS,
    Pairs,
    Term,
    check_depth,
    check_dims,
    check_pairs,
    component_alignment,
    feature_kl,
    score_kl,
    sum_terms,
)
from research.transforms.normalize import l2_normalize
from research.types import Array, Key, Labels, SizeLoss


def full_size(loss: Loss) -> SizeLoss:
    """The base loss of the last layer at full width only.

    The metrics are the unweighted terms of a loss that is a sum.
    """

    def loss_of_last_layer(q: Array, d: Array, labels: Labels, key: Key):
        del key
        return loss.compute_terms(q, d, labels)

    return SizeLoss(loss_of_last_layer, needs_all_layers=False)


def single_size(loss: Loss, *, depth: int = -1, dim: int = -1) -> SizeLoss:
    """The base loss at one size.

    Args:
        loss: The base loss.
        depth: The layer, from 1; -1 for the last one.
        dim: The width; -1 for full width.

    Raises:
        ValueError: The model has no such size.
    """

    def loss_of_one_size(q: Array, d: Array, labels: Labels, key: Key):
        del key
        width = q.shape[-1] if dim == -1 else dim
        check_dims([width], q.shape[-1])
        if depth != -1:
            check_pairs([(depth, width)], q.shape[1] - 1, q.shape[-1])
            q, d = q[:, depth], d[:, depth]  # [B, D], [B*K, D]
        return loss.compute_terms(q[..., :width], d[..., :width], labels)

    return SizeLoss(loss_of_one_size, needs_all_layers=depth != -1)


def matryoshka(
    loss: Loss, *, dims: tuple[int, ...], weights: tuple[float, ...] = ()
) -> SizeLoss:
    """Weighted sum of the loss over prefixes of the embedding (Kusupati et al. 2022).

    The metrics are the losses of the widths and, of a loss that is a sum, the terms at
    the largest.

    Args:
        loss: The base loss.
        dims: Widths; full width is trained only if it is one of them.
        weights: One weight per width; all 1 if empty.

    Raises:
        ValueError: The model has no such width, or the numbers of weights and widths
            differ.
    """
    if not dims:
        raise ValueError("matryoshka needs at least one width in dims")
    if weights and len(weights) != len(dims):
        raise ValueError(f"{len(weights)} weights are given for {len(dims)} dims")

    def loss_of_prefixes(q: Array, d: Array, labels: Labels, key: Key):
        del key
        chex.assert_rank([q, d], {2, 3})
        check_dims(dims, q.shape[-1])
        # The base loss at each width [B], its terms at the largest, and the sum
        parts = [loss.compute_terms(q[..., :k], d[..., :k], labels) for k in dims]
        losses = [values for values, _ in parts]
        metrics = {f"task/{k}": jnp.mean(x) for k, x in zip(dims, losses, strict=True)}
        metrics |= parts[dims.index(max(dims))][1]
        weighted = zip(weights or (1.0,) * len(dims), losses, strict=True)
        return sum(c * x for c, x in weighted), metrics

    return SizeLoss(loss_of_prefixes, needs_all_layers=False)


def two_dimensional(
    loss: Loss,
    *,
    pairs: Pairs,
    weights: tuple[float, ...] = (),
    reduction: str = "sum",
    layer_weight: str = "uniform",
    kl_on: str = "none",
    kl_teacher: str = "same_prefix",
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
    detach_teacher: bool = False,
) -> SizeLoss:
    """The base loss at fixed sizes, with distillation from the last layer (KL).

    Args:
        loss: The base loss; `kl_on` "scores" uses its similarity.
        pairs: Sizes (depth, dim), depth from 1; the full size is trained only if it is
            one of them.
        weights: One weight per size's task loss; all 1 if empty.
        reduction: "sum" or "mean" over the sizes.
        layer_weight: Weight of the task loss at depth l below the last: "uniform" 1,
            "linear" 1/l or "log" 1/(1 + ln(1 + l)).
        kl_on: "none", "features" (softmax over the dimensions of each unnormalized
            embedding) or "scores" (over each query's similarities to all documents).
        kl_teacher: Teacher of a size: the last layer at the "same_prefix" or at "full"
            width ("scores" only); a size that is its own teacher has no divergence.
        kl_weight: Factor of the divergences.
        kl_temperature: Divisor of the features or similarities before the softmax.
        detach_teacher: Whether the teacher gets no gradient from the divergence.

    Raises:
        ValueError: The model has no such size, an option is unknown, or the numbers of
            weights and sizes differ.
    """
    check_option("reduction", reduction, ("sum", "mean"))
    check_option("layer_weight", layer_weight, LAYER_WEIGHTS)
    check_option("kl_on", kl_on, ("none", "features", "scores"))
    check_option("kl_teacher", kl_teacher, ("same_prefix", "full"))
    # Combinations that make no sense
    if (kl_on, kl_teacher) == ("features", "full"):
        raise ValueError("kl_teacher 'full' has more features than a narrower student")
    if len(set(pairs)) != len(pairs) or not pairs:
        raise ValueError(f"pairs must be different sizes (depth, dim), not {pairs}")
    if weights and len(weights) != len(pairs):
        raise ValueError(f"{len(weights)} weights are given for {len(pairs)} pairs")

    # Divergence of a size from its teacher: by features, or by scores
    divergence = partial(
        feature_kl, temperature=kl_temperature, detach_teacher=detach_teacher
    )
    if kl_on == "scores":
        divergence = partial(
            score_kl,
            temperature=kl_temperature,
            detach_teacher=detach_teacher,
            similarity=loss.similarity,
            full_width_teacher=kl_teacher == "full",
        )

    # Factor of every term
    scale = 1 / len(pairs) if reduction == "mean" else 1.0

    def choose_terms(key: Key, blocks: int, width: int):
        del key
        check_pairs(pairs, blocks, width)
        tasks, students = [], []
        size_weights = weights or (1.0,) * len(pairs)
        for (depth, dim), weight in zip(pairs, size_weights, strict=True):
            # The last layer has weight 1
            if depth < blocks:
                weight *= LAYER_WEIGHTS[layer_weight](depth)
            name = f"{depth}x{dim}"
            tasks.append(Term(name, depth, dim, weight * scale))
            # Sizes that are not their own teacher have a divergence
            teacher = (blocks, width if kl_teacher == "full" else dim)
            if kl_on != "none" and (depth, dim) != teacher:
                students.append(Term(name, depth, dim, kl_weight * scale))
        return tasks, students

    return sum_terms(loss, choose_terms, divergence)


def starbucks_sts(loss: Loss, *, pairs: Pairs, kl_weight: float = 1.0) -> SizeLoss:
    """Starbucks fine-tuning as its STS code does it (Zhuang et al. 2024).

    The sum, not the mean, over the sizes of the base loss and, below the last layer, of
    0.3 * kl_weight * KL(softmax(teacher) || softmax(size)) over the features of every
    query and document. The teacher is the last layer's prefix of the same width and
    receives gradient. The code calls 0.3 a temperature, but only multiplies by it.

    Args:
        loss: The base loss; the authors use `infonce` of cosines with temperature 0.05
            (or `cosent`).
        pairs: Sizes (depth, dim), including the full size.
        kl_weight: Factor of the divergences, in addition to 0.3.
    """
    return two_dimensional(
        loss, pairs=pairs, kl_on="features", kl_weight=0.3 * kl_weight
    )


def starbucks_retrieval(
    loss: Loss, *, pairs: Pairs, kl_weight: float = 1.0, normalize: bool = False
) -> SizeLoss:
    """Starbucks fine-tuning as its retrieval code does it, unlike its STS code.

    The sum over the sizes of the base loss and, except at the full size, of
    kl_weight * KL(softmax(teacher) || softmax(size)) over each query's similarities to
    all documents of the batch, divided by the loss's temperature. The teacher is the
    full size and receives no gradient.

    Args:
        loss: The base loss, whose similarity and temperature the divergences share; the
            authors use `infonce` of dot products with temperature 1.
        pairs: Sizes (depth, dim), including the full size.
        kl_weight: Factor of the divergences.
        normalize: Whether every layer's full vectors are normalized before they are
            cut, so that a shorter vector is not of unit length; for dot products.

    Raises:
        ValueError: As in `two_dimensional`, or `normalize` with another similarity.
    """
    if normalize and loss.similarity != "dot":
        raise ValueError(
            "starbucks_retrieval with normalize=True needs the similarity 'dot', not "
            f"{loss.similarity!r}, which would normalize the cut vectors again"
        )
    size_loss = two_dimensional(
        loss,
        pairs=pairs,
        kl_on="scores",
        kl_teacher="full",
        kl_weight=kl_weight,
        kl_temperature=loss.temperature,
        detach_teacher=True,
    )
    if not normalize:
        return size_loss

    def loss_of_unit_vectors(q: Array, d: Array, labels: Labels, key: Key):
        return size_loss.loss(l2_normalize(q), l2_normalize(d), labels, key)

    return SizeLoss(loss_of_unit_vectors, needs_all_layers=True)


def ese(
    loss: Loss, *, dim: int = 128, align: bool = True, kl_temperature: float = 1.0
) -> SizeLoss:
    """Espresso sentence embeddings as in their code (Li et al. 2024; SeanLee97/AnglE).

    The base loss at (L, D), plus the terms of (L, k), plus 1/(L-1) times the sum over
    i = 0..L-2 of the terms of (i, k) divided by 1 + ln(1 + i), where i = 0 is the
    embedding layer; block L-1 has none. The terms of a size are the base loss and, with
    `align`, the alignment of its vectors with principal components of their layer
    (`size_terms.component_alignment`).

    Args:
        loss: The base loss.
        dim: The width k.
        align: Whether sizes are aligned. It takes a singular value decomposition of a
            [D, D] matrix for each layer in each step.
        kl_temperature: Divisor of the features in the alignment's divergence.

    Raises:
        ValueError: The model has no such width, or only one layer.
    """

    def choose_terms(key: Key, blocks: int, width: int):
        del key
        check_dims([dim], width)
        check_depth(blocks)
        sizes = [Term(f"{blocks}x{dim}", blocks, dim, 1.0)]
        # Smaller depths at width k, from the embedding layer up
        for i in range(blocks - 1):
            weight = LAYER_WEIGHTS["log"](i) / (blocks - 1)
            sizes.append(Term(f"{i}x{dim}", i, dim, weight))
        full = Term(f"{blocks}x{width}", blocks, width, 1.0)
        return [full, *sizes], sizes if align else []

    alignment = partial(component_alignment, temperature=kl_temperature)
    return sum_terms(loss, choose_terms, alignment, name="align")


# Functions of a base loss, by the name of a config section `size_loss`.
SIZE_LOSSES = {
    "full_size": full_size,
    "single_size": single_size,
    "matryoshka": matryoshka,
    "two_dimensional": two_dimensional,
    "starbucks_sts": starbucks_sts,
    "starbucks_retrieval": starbucks_retrieval,
    "mse2d_v1": mse2d_v1,
    "mse2d_later": mse2d_later,
    "st5_adaptive": st5_adaptive,
    "st6_adaptive": st6_adaptive,
    "ese": ese,
    "nested_groups": nested_groups,
}
