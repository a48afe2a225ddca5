"""Losses over query and document embeddings; their mean over [B] is what is trained.

Embeddings come unnormalised, q [B, D] and d [B*K, D]: row i*K of d is query i's
positive, the next K-1 rows its hard negatives. Everything is float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.similarity import cosines, scores_of, similarities, ways_of
from research.transforms.normalize import l2_norm, to_float32
from research.types import Array, Labels


def infonce(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    temperature: float = 0.05,
    similarity: str = "cosine",
    symmetric: bool = False,
    negatives: str = "shared",
    same_side: bool = False,
    margin: float | None = None,
    alpha: float = 0.0,
) -> Array:
    """Softmax cross-entropy of each query's positive against the batch's documents.

    van den Oord et al. 2018, eq. 4. A document is left out of a query's softmax where
    its text equals the positive's or its own query's text equals this one (labels' ids;
    Lee et al. 2025, EmbeddingGemma); the positive itself and, unless their text is the
    positive's, the query's own hard negatives stay.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.
        labels: ids that are given are masked by; scores are ignored.
        temperature: divides the similarities.
        similarity: "cosine" or "dot".
        symmetric: also find each positive's query among the queries (no hard negatives)
            and average the two directions, as CLIP does.
        negatives: "shared", all documents of the batch; "own", every positive but only
            the query's own hard negatives (Gemini and Qwen3 embeddings); or "hard",
            nothing but these (the second stage of NV-Embed, Lee et al. 2024), which
            symmetric and same_side have no part in.
        same_side: query i's softmax, in both directions, also holds the other queries
            (against query i) and the other positives (against positive i).
        margin: leave out whatever is more similar than the positive's similarity plus
            this (Qwen3 embeddings use 0.1); None keeps all.
        alpha: added to the logits, after the temperature, of a query's own hard
            negatives (SimCSE's hard-negative weight is its exponential).

    Returns:
        [B] float32 loss per query.

    Raises:
        ValueError: rows of d are no multiple of rows of q, or an unknown option.
    """
    check_option("negatives", negatives, ("shared", "own", "hard"))
    if negatives == "hard" and (symmetric or same_side or len(d) == len(q)):
        raise ValueError(
            "negatives 'hard' compares a query with its hard negatives alone: it needs "
            "some, and neither symmetric nor same_side"
        )
    blocks = _blocks(q, d, labels, similarity, margin, same_side)
    ways = d.shape[0] // q.shape[0]
    own_row = jnp.repeat(jnp.eye(q.shape[0], dtype=bool), ways, axis=1)
    hard = (jnp.arange(d.shape[0]) % ways > 0)[None, :]
    forward = _scaled(blocks.forward, temperature)
    forward = jnp.where(own_row & hard, forward + alpha, forward)
    if negatives == "own":
        forward = jnp.where(hard & ~own_row, _LOWEST, forward)
    if negatives == "hard":
        forward = jnp.where(own_row, forward, _LOWEST)
    sides = [_scaled(side, temperature) for side in blocks.sides]
    positive = blocks.positive / temperature
    loss = _logsumexp(forward, *sides) - positive
    if symmetric:
        backward = _scaled(blocks.backward, temperature)
        loss = (loss + _logsumexp(backward, *sides) - positive) / 2
    return loss


def gte(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    temperature: float = 0.01,
    similarity: str = "cosine",
    margin: float | None = None,
) -> Array:
    """One softmax over documents, other queries, other positives and reverse pairs.

    Li et al. 2023 (GTE), "improved contrastive loss". As printed there the positive
    counts twice, so that a batch of one pair costs log 2; we follow the print. Equal
    texts are left out as in `infonce`, whose arguments these are.

    Returns:
        [B] float32 loss per query.
    """
    blocks = _blocks(q, d, labels, similarity, margin, same_side=True)
    logits = [blocks.forward, blocks.backward, *blocks.sides]
    logits = [_scaled(block, temperature) for block in logits]
    return _logsumexp(*logits) - blocks.positive / temperature


def cosent(q: Array, d: Array, labels: Labels, *, scale: float = 20.0) -> Array:
    """Pairs of pairs whose cosines are in the other order than their scores (CoSENT).

    log(1 + sum over g_i < g_j of exp(scale * (cos_i - cos_j))), one number for the
    batch; it grows with the logarithm of the number of pairs, and is 0 where all scores
    are equal.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents; query i is paired with each of its K.
        labels: score [B] (when K is 1) or [B, K]; only its order matters.
        scale: multiplies the cosines.

    Returns:
        [B] float32, the batch's loss in every row.

    Raises:
        ValueError: scores are missing or not one for each pair.
    """
    scores = scores_of(q, d, labels)
    return _ranked(scale * cosines(q, d), scores)


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

    Li and Li 2023; SeanLee97/AnglE loss.py. With halves x = (a, b) read as a + ib the
    code takes |cos(x, y) + cos((b, -a), y)| in place of the cosine, which is a
    perturbed cosine and no angle difference: 1 for y = x and for y = -x, not symmetric.

    Args:
        q: [B, D] queries, D even.
        d: [B*K, D] documents; query i is paired with each of its K.
        labels: score [B] (when K is 1) or [B, K].
        scale: multiplies every term's similarities.
        angle_weight: weight of that term.
        cosine_weight: weight of `cosent`.
        in_batch_weight: weight of finding a pair's other text among all texts of the
            batch, for the pairs with a score above 0 (of a binary score).

    Returns:
        [B] float32; the ranking terms are the batch's, the same in every row.

    Raises:
        ValueError: D is odd, or scores are missing or not one for each pair.
    """
    scores = scores_of(q, d, labels)
    loss = angle_weight * _ranked(scale * _perturbed_cosines(q, d), scores)
    if cosine_weight:
        loss += cosine_weight * cosent(q, d, labels, scale=scale)
    if in_batch_weight:
        loss += in_batch_weight * _in_batch(q, d, scores, scale)
    return loss


def triplet(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    margin: float = 5.0,
    distance: str = "euclidean",
) -> Array:
    """How far each positive is from being closer than its hard negatives by a margin.

    Reimers and Gurevych 2019, section 3.2, averaged over the K-1 hard negatives.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents, K at least 2.
        labels: ignored.
        margin: in units of the distance.
        distance: "euclidean", or "cosine", which is 1 - cosine.

    Returns:
        [B] float32 loss per query.

    Raises:
        ValueError: there are no hard negatives, or an unknown distance.
    """
    check_option("distance", distance, ("euclidean", "cosine"))
    if ways_of(q, d) < 2:
        raise ValueError("triplet needs hard negatives, but each query has 1 document")
    if distance == "cosine":
        far = 1 - cosines(q, d)
    else:
        far = l2_norm(
            to_float32(q)[:, None] - to_float32(d).reshape(q.shape[0], -1, q.shape[1])
        )
    return jnp.mean(jax.nn.relu(far[:, :1] - far[:, 1:] + margin), axis=1)


def cosine_mse(q: Array, d: Array, labels: Labels) -> Array:
    """Squared difference of each pair's cosine from its score.

    Reimers and Gurevych 2019, section 3.2 (regression objective).

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents; query i is paired with each of its K.
        labels: score [B] (when K is 1) or [B, K], in the cosine's range.

    Returns:
        [B] float32, averaged over a query's documents.

    Raises:
        ValueError: scores are missing or not one for each pair.
    """
    scores = scores_of(q, d, labels)
    return jnp.mean(jnp.square(cosines(q, d) - scores), axis=1)


class _Blocks(NamedTuple):
    """Similarities; the lowest float32 stands for what is left out."""

    positive: Array  # [B] of query i to its positive
    forward: Array  # [B, B*K] of query i to document j
    backward: Array  # [B, B] of positive i to query j
    sides: list[Array]  # two [B, B] of query i to query j != i, and so of positives


_LOWEST = float(jnp.finfo(jnp.float32).min)


def _blocks(q, d, labels, similarity, margin, same_side) -> _Blocks:
    ways = ways_of(q, d)
    count = q.shape[0]
    itself = jnp.eye(count, dtype=bool)
    same_query, same_document = _equal(q, d, labels, ways)
    apart = ~(jnp.repeat(same_query & ~itself, ways, axis=1) | same_document)
    is_positive = jnp.arange(count)[:, None] * ways == jnp.arange(count * ways)[None, :]
    others = ~(same_query | same_document[:, ::ways] | itself)
    forward = similarities(q, d, similarity)
    positive = jnp.sum(jnp.where(is_positive, forward, 0.0), axis=1)

    def kept(scores, keep, always=None):
        if margin is not None:
            keep &= scores <= positive[:, None] + margin
        keep = keep if always is None else keep | always
        return jnp.where(keep, scores, _LOWEST)

    sides = [(q, q), (d[::ways], d[::ways])] if same_side else []
    return _Blocks(
        positive,
        kept(forward, apart, is_positive),
        kept(forward[:, ::ways].T, others, itself),
        [kept(similarities(x, y, similarity), others) for x, y in sides],
    )


def _equal(q, d, labels, ways) -> tuple[Array, Array]:
    """Whether query j is query i [B, B], whether document j is positive i [B, B*K]."""
    same_query = jnp.zeros((q.shape[0], q.shape[0]), bool)
    same_document = jnp.zeros((q.shape[0], d.shape[0]), bool)
    if (ids := labels.query_id) is not None:
        same_query = jnp.all(ids[:, None] == ids[None], axis=-1)
    if (ids := labels.document_id) is not None:
        same_document = jnp.all(ids[::ways, None] == ids[None], axis=-1)
    return same_query, same_document


def _scaled(scores: Array, temperature: float) -> Array:
    return jnp.where(scores == _LOWEST, _LOWEST, scores / temperature)


def _logsumexp(*blocks: Array) -> Array:
    """Of the rows of all blocks [B, ...] together, without concatenating them."""
    parts = jnp.stack([jax.nn.logsumexp(block, axis=1) for block in blocks], axis=1)
    return jax.nn.logsumexp(parts, axis=1)


def _ranked(values: Array, scores: Array) -> Array:
    """[B] log(1 + sum over g_i < g_j of exp(v_i - v_j)) of [B, K] values, scores g."""
    flat, grades = values.ravel(), scores.ravel()
    wrong = flat[:, None] - flat[None, :]
    wrong = jnp.where(grades[:, None] < grades[None, :], wrong, _LOWEST)
    loss = jnp.logaddexp(0.0, jax.nn.logsumexp(wrong))
    return jnp.full(values.shape[0], loss)


def _perturbed_cosines(q: Array, d: Array) -> Array:
    width = q.shape[1]
    if width % 2:
        raise ValueError(f"angle needs an even number of dimensions, not {width}")
    a, b = jnp.split(q, 2, axis=1)
    return jnp.abs(cosines(q, d) + cosines(jnp.concatenate([b, -a], axis=1), d))


def _in_batch(q: Array, d: Array, scores: Array, scale: float) -> Array:
    """[B] cross-entropy of each text's partner among all other texts of the batch."""
    texts = jnp.concatenate([jnp.repeat(q, ways_of(q, d), axis=0), d])
    count = d.shape[0]
    itself = jnp.eye(2 * count, dtype=bool)
    logits = scale * similarities(texts, texts, "cosine")
    partner = jnp.sum(jnp.where(jnp.roll(itself, count, axis=1), logits, 0.0), axis=1)
    total = jax.nn.logsumexp(jnp.where(itself, _LOWEST, logits), axis=1)
    loss = jnp.mean((total - partner).reshape(2, *scores.shape), axis=0)
    return jnp.mean(jnp.where(scores > 0, loss, 0.0), axis=1)


LOSSES = {
    "infonce": infonce,
    "gte": gte,
    "cosent": cosent,
    "angle": angle,
    "triplet": triplet,
    "cosine_mse": cosine_mse,
}
