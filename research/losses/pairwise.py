"""Losses for graded pairs and for triplets: CoSENT, regression, AnglE, triplet.

`cosent` and `cosine_mse` are losses of scores, (PairScores of b rows, Labels) -> [b];
`angle`, `angle_triplets` and `triplet` need the vectors of the whole batch, (q [B, D],
d [B*K, D], Labels) -> [B].
"""

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.contrastive import NEG_INF
from research.losses.similarity import (
    PairScores,
    cosine,
    docs_per_query,
    own_document_scores,
    target_scores,
)
from research.transforms.normalize import l2_norm, to_float32
from research.types import Array, Labels


def cosent(scores: PairScores, labels: Labels, *, scale: float = 20.0) -> Array:
    """Ranking loss over all pairs of scores (CoSENT, Su 2022).

    log(1 + sum over g_i < g_j of exp(scale * (s_i - s_j))) for scores s and grades g,
    one number per batch. It grows with the logarithm of the number of pairs, and is 0
    if all grades are equal.

    Args:
        scores: Similarities of b rows; only `all_own_documents` is used.
        labels: Labels with score [B] (if K is 1) or [B, K]; only its order matters.
        scale: Factor of the similarities.

    Returns:
        [b] float32, the loss of the batch, repeated.

    Raises:
        ValueError: The labels' scores are missing, or not one per pair.
    """
    grades = target_scores(labels, scores.all_own_documents.shape)
    loss = _rank_loss(scale * scores.all_own_documents, grades)  # [B]
    return scores.vectors.take_rows(loss)


def cosine_mse(scores: PairScores, labels: Labels) -> Array:
    """Squared difference of each pair's similarity from its score.

    Reimers and Gurevych 2019, section 3.2 (regression objective), who use cosines.

    Args:
        scores: Similarities of b rows; only `own_documents` is used.
        labels: Labels with score [B] (if K is 1) or [B, K], in the similarity's range.

    Returns:
        [b] float32, the mean over a query's documents.

    Raises:
        ValueError: The labels' scores are missing, or not one per pair.
    """
    vectors = scores.vectors
    grades = target_scores(labels, (len(vectors.all_queries), vectors.docs_per_query))
    errors = scores.own_documents - vectors.take_rows(grades)  # [b, K]
    return jnp.mean(jnp.square(errors), axis=1)


def angle(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    scale: float = 20.0,
    angle_weight: float = 1.0,
    cosine_weight: float = 0.0,
    in_batch_weight: float = 0.0,
) -> Array:
    """CoSENT on the complex "angle" of AnglE, as its code computes it.

    Li and Li 2023; SeanLee97/AnglE loss.py. For x = (a, b), read as a + ib, the code
    uses |cos(x, y) + cos((b, -a), y)| in place of the cosine. This is a perturbed
    cosine rather than an angle difference: it is 1 for y = x and for y = -x, and not
    symmetric.

    Args:
        q: [B, D] queries, D even.
        d: [B*K, D] documents; query i is paired with each of its K.
        labels: Labels with score [B] (if K is 1) or [B, K].
        scale: Factor of every term's similarities.
        angle_weight: Weight of the perturbed cosines' ranking loss.
        cosine_weight: Weight of `cosent` of the cosines.
        in_batch_weight: Weight of the cross-entropy of each text's partner among all
            texts of the batch, for pairs whose (binary) score is above 0.

    Returns:
        [B] float32; the ranking terms are one number per batch, equal in every entry.

    Raises:
        ValueError: D is odd, or the scores are missing or not one per pair.
    """
    grades = target_scores(labels, (q.shape[0], docs_per_query(q, d)))
    loss = angle_weight * _rank_loss(scale * _perturbed_cosines(q, d), grades)
    if cosine_weight:
        cosines = own_document_scores(q, d, "cosine")
        loss += cosine_weight * _rank_loss(scale * cosines, grades)
    if in_batch_weight:
        loss += in_batch_weight * _in_batch_loss(q, d, grades, scale)
    return loss


def angle_triplets(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    scale: float = 20.0,
    angle_weight: float = 0.02,
    cosine_weight: float = 0.0,
    in_batch_weight: float = 1.0,
    hard_weight: float = 1.0,
) -> Array:
    """AnglE for triplets, without scores, as its code computes it (format C).

    Half of the cross-entropy of each positive among the positives, plus half of that
    among all documents of the batch, plus the ranking losses of `angle`, in which a
    query's positive is above every hard negative. Equal texts are not left out.

    Args:
        q: [B, D] queries, D even.
        d: [B*K, D] documents, K at least 2; the authors have one hard negative.
        labels: Ignored.
        scale: Factor of every term's similarities.
        angle_weight: Weight of the perturbed cosines' ranking loss.
        cosine_weight: Weight of `cosent` of the cosines.
        in_batch_weight: Weight of the cross-entropy among the positives.
        hard_weight: Weight of the cross-entropy among all documents.

    Returns:
        [B] float32; the ranking terms are one number per batch, equal in every entry.

    Raises:
        ValueError: D is odd, or there are no hard negatives.
    """
    del labels
    num_docs = _count_documents("angle_triplets", q, d)
    # [B, K] grades: 1 for the positive, 0 for hard negatives
    grades = jnp.zeros((len(q), num_docs)).at[:, 0].set(1.0)
    loss = angle(
        q,
        d,
        Labels(grades),
        scale=scale,
        angle_weight=angle_weight,
        cosine_weight=cosine_weight,
    )
    # [B] cross-entropy among the positives, and among all documents
    logits = scale * cosine(q, d)  # [B, B*K]
    positives = logits[:, ::num_docs]  # [B, B]
    for weight, candidates in ((in_batch_weight, positives), (hard_weight, logits)):
        entropy = jax.nn.logsumexp(candidates, axis=1) - jnp.diagonal(positives)
        loss += weight / 2 * entropy
    return loss


def triplet(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    margin: float = 5.0,
    distance: str = "euclidean",
) -> Array:
    """Hinge loss: the positive should be closer than each hard negative by a margin.

    Reimers and Gurevych 2019, section 3.2, averaged over the K-1 hard negatives.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents, K at least 2.
        labels: Ignored.
        margin: The margin, in units of the distance.
        distance: "euclidean", or "cosine" for 1 - cosine.

    Returns:
        [B] float32 loss per query.

    Raises:
        ValueError: There are no hard negatives, or the distance is unknown.
    """
    check_option("distance", distance, ("euclidean", "cosine"))
    num_docs = _count_documents("triplet", q, d)
    # [B, K] distances of each query to its own documents
    if distance == "cosine":
        distances = 1 - own_document_scores(q, d, "cosine")
    else:
        # [B, K, D]
        d = to_float32(d).reshape(q.shape[0], num_docs, q.shape[1])
        distances = l2_norm(to_float32(q)[:, None] - d)
    # [B] mean over the hard negatives
    return jnp.mean(jax.nn.relu(distances[:, :1] - distances[:, 1:] + margin), axis=1)


def _count_documents(name: str, q: Array, d: Array) -> int:
    """K, the number of documents per query of a loss that needs hard negatives."""
    num_docs = docs_per_query(q, d)
    if num_docs < 2:
        raise ValueError(f"{name} needs hard negatives, but each query has 1 document")
    return num_docs


def _rank_loss(values: Array, grades: Array) -> Array:
    """[B] log(1 + sum over g_i < g_j of exp(v_i - v_j)) of [B, K] values and grades.

    In order of the grades, the sum over i of exp(v_i) for all j is a cumulative sum, so
    that memory grows with the number of values and not with its square.
    """
    order = jnp.argsort(grades.ravel())
    v, g = values.ravel()[order], grades.ravel()[order]  # [B*K]
    # [B*K] log of the sum of exp(v_i) over the values up to each one
    sums = jax.lax.cumlogsumexp(v)
    # Number of values i with a grade below that of j
    below = jnp.searchsorted(g, g, side="left")
    logits = jnp.where(below > 0, sums[below - 1] - v, NEG_INF)
    # log(1 + sum exp): logaddexp with 0
    loss = jnp.logaddexp(0.0, jax.nn.logsumexp(logits))
    return jnp.full(values.shape[0], loss)


def _perturbed_cosines(q: Array, d: Array) -> Array:
    """[B, K] |cos(x, y) + cos((b, -a), y)|, queries x = (a, b), own documents y."""
    width = q.shape[1]
    if width % 2:
        raise ValueError(f"angle needs an even number of dimensions, not {width}")
    # x times -i: (a + ib) * -i = b - ia
    a, b = jnp.split(q, 2, axis=1)
    turned = jnp.concatenate([b, -a], axis=1)
    return jnp.abs(
        own_document_scores(q, d, "cosine") + own_document_scores(turned, d, "cosine")
    )


def _in_batch_loss(q: Array, d: Array, grades: Array, scale: float) -> Array:
    """[B] cross-entropy of each text's partner among all other texts of the batch."""
    # [2*B*K, D]: text i and text i + B*K are partners
    texts = jnp.concatenate([jnp.repeat(q, docs_per_query(q, d), axis=0), d])
    count = d.shape[0]
    diagonal = jnp.eye(2 * count, dtype=bool)
    # [2*B*K, 2*B*K] logits, and each text's logit of its partner
    logits = scale * cosine(texts, texts)
    is_partner = jnp.roll(diagonal, count, axis=1)
    partner = jnp.sum(jnp.where(is_partner, logits, 0.0), axis=1)
    # A text is left out of its own softmax
    total = jax.nn.logsumexp(jnp.where(diagonal, NEG_INF, logits), axis=1)
    # [B, K] mean of the losses of a pair's two texts; 0 where its score is not positive
    loss = jnp.mean((total - partner).reshape(2, *grades.shape), axis=0)
    return jnp.mean(jnp.where(grades > 0, loss, 0.0), axis=1)
