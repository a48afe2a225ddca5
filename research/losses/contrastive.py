"""Softmax losses of similarity scores: InfoNCE, the improved loss of GTE, GISTEmbed.

A loss maps `PairScores` of b rows, and the `Labels` of the whole batch, to [b] float32,
one loss per query; training minimizes the mean. It works with any similarity.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.focal import focal_weights
from research.losses.mixing import mix_negatives
from research.losses.similarity import PairScores, PairVectors
from research.losses.teacher import teacher_pairs
from research.types import Array, Labels

# Logit of pairs left out of a softmax: finite, so that no gradient is NaN.
NEG_INF = float(jnp.finfo(jnp.float32).min)


def infonce(
    scores: PairScores,
    labels: Labels,
    *,
    temperature: float = 0.05,
    symmetric: bool = False,
    negatives: str = "shared",
    same_side: bool = False,
    margin: float | None = None,
    alpha: float = 0.0,
    hardness: float = 0.0,
    positive_margin: float = 0.0,
    focal: float = 0.0,
    progressive: bool = False,
    detach_focal: bool = True,
    mixed_pairs: int = 0,
    mixed_list: bool = False,
) -> Array:
    """Softmax cross-entropy of each query's positive against the batch's documents.

    van den Oord et al. 2018, eq. 4. A document is left out of a query's softmax if its
    text equals the positive's, or if it belongs to another query with the same text (by
    the labels' ids; Lee et al. 2025, EmbeddingGemma). The positive itself always stays,
    and so do the query's own hard negatives unless their text equals the positive's.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Ids of equal texts in the batch; scores are ignored.
        temperature: Divisor of the similarities.
        symmetric: Whether to also classify each positive's query among the queries
            (without hard negatives) and average the two directions, as CLIP does.
        negatives: "shared": all documents of the batch; "own": every positive, but only
            the query's own hard negatives (Gemini and Qwen3 embeddings), for queries
            with several positives, which may be mined for other queries; "hard": only
            the query's own hard negatives (second stage of NV-Embed, Lee et al. 2024),
            which excludes `symmetric` and `same_side`.
        same_side: Whether both directions also contrast query i with the other queries
            and positive i with all documents of other queries (sentence-transformers'
            query_to_query and doc_to_doc).
        margin: Negatives whose similarity exceeds the positive's by more than this are
            left out (Qwen3 embeddings use 0.1); None keeps all.
        alpha: Addend, after the temperature, of the logits of a query's own hard
            negatives (exp(alpha) is SimCSE's hard-negative weight).
        hardness: Factor of the similarity, without gradient, that is added to these
            logits as well: harder negatives weigh more (EmbeddingGemma uses 5).
        positive_margin: Subtracted from the positive's similarity, before the
            temperature (LaBSE, Feng et al. 2022, uses 0.3).
        focal: Exponent of the weight (1 - p)^focal of each query's loss, where p is the
            probability of its positive, exp(-loss) (KaLM-Embedding-V2 uses 0.5); 0 for
            no weights.
        progressive: Whether the exponent grows from 0 to `focal` in the course of the
            run, so that hard queries count more and more.
        detach_focal: Whether the weights have no gradient.
        mixed_pairs: Number of further negatives per query, each a mixture of two of its
            hard negatives (`mix_negatives`; KaLM-Embedding-V2).
        mixed_list: Whether a mixture of all its hard negatives is another one (not
            the paper's formula, which was not at hand).

    Returns:
        [b] float32 loss per query.

    Raises:
        ValueError: An option is unknown, negatives "hard" has no hard negatives or is
            combined with `symmetric` or `same_side`, or `progressive` has no `focal`.
    """
    check_option("negatives", negatives, ("shared", "own", "hard"))
    num_docs = scores.vectors.docs_per_query
    if negatives == "hard" and (symmetric or same_side or num_docs == 1):
        raise ValueError(
            "negatives 'hard' compares a query with its hard negatives alone: it needs "
            "some, and neither symmetric nor same_side"
        )
    if progressive and not focal:
        raise ValueError("progressive weights need an exponent: set focal, such as 0.5")
    allowed = _allowed_pairs(scores, labels, margin)

    # [b, B*K] own documents, and hard negatives of any query
    is_own = jnp.repeat(scores.vectors.is_own, num_docs, axis=1)
    is_hard = (jnp.arange(is_own.shape[1]) % num_docs > 0)[None, :]
    # Leave out other queries' hard negatives, or all documents of other queries
    if negatives == "own":
        allowed = allowed._replace(
            query_document=allowed.query_document & (is_own | ~is_hard),
            positive_document=allowed.positive_document & ~is_hard,
        )
    if negatives == "hard":
        documents = allowed.query_document & is_own
        allowed = allowed._replace(query_document=documents)

    # [b, B*K] logits of documents
    logits = _mask_logits(scores.query_document / temperature, allowed.query_document)
    is_own_hard = is_own & is_hard
    logits = jnp.where(is_own_hard, logits + alpha, logits)
    if hardness:
        similarities = jax.lax.stop_gradient(scores.query_document)
        logits = jnp.where(is_own_hard, logits + hardness * similarities, logits)
    if positive_margin:
        # The positive itself has to be above the others by the margin
        lower = logits - positive_margin / temperature
        logits = jnp.where(_is_positive(scores.vectors), lower, logits)

    # [b, B*M] logits of mixtures of hard negatives
    mixed_logits = []
    if mixed_pairs or mixed_list:
        options = {"temperature": temperature, "pairs": mixed_pairs}
        mixed, is_negative = mix_negatives(
            scores, labels, allowed.query_document, **options, lists=mixed_list
        )
        mixed_logits = [_mask_logits(mixed / temperature, is_negative)]

    # Blocks [b, B] and [b, B*K] of logits, in the softmax of both directions
    same_side_logits = []
    if same_side:
        same_side_logits = _same_side_logits(scores, allowed, temperature)

    # [b]
    positive_logits = (_positives(scores) - positive_margin) / temperature
    loss = _logsumexp(logits, *mixed_logits, *same_side_logits) - positive_logits
    if symmetric:
        # [b, B] logits of queries, for each positive
        queries = scores.positive_query / temperature
        queries = _mask_logits(queries, allowed.positive_query)
        if positive_margin:
            lower = queries - positive_margin / temperature
            queries = jnp.where(scores.vectors.is_own, lower, queries)
        backward = _logsumexp(queries, *same_side_logits) - positive_logits
        loss = (loss + backward) / 2
    if focal:
        weights = focal_weights(loss, focal, labels.progress if progressive else None)
        loss *= jax.lax.stop_gradient(weights) if detach_focal else weights
    return loss


def gte(
    scores: PairScores,
    labels: Labels,
    *,
    temperature: float = 0.01,
    margin: float | None = None,
) -> Array:
    """One softmax over documents, reverse pairs, and pairs of the same side.

    Li et al. 2023 (GTE), "improved contrastive loss". As printed in the paper, the
    denominator counts the positive twice, so that a batch of one pair has the loss
    log 2. Hard negatives are documents of their query, as in sentence-transformers.
    Equal texts are left out as in `infonce`.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Ids of equal texts in the batch; scores are ignored.
        temperature: Divisor of the similarities.
        margin: As in `infonce`.

    Returns:
        [b] float32 loss per query.
    """
    allowed = _allowed_pairs(scores, labels, margin)
    # [b, B*K] logits of documents, and [b, B] logits of queries for each positive
    documents = scores.query_document / temperature
    queries = scores.positive_query / temperature
    total = _logsumexp(
        _mask_logits(documents, allowed.query_document),
        _mask_logits(queries, allowed.positive_query),
        *_same_side_logits(scores, allowed, temperature),
    )
    return total - _positives(scores) / temperature


def gist(
    scores: PairScores,
    labels: Labels,
    *,
    temperature: float = 0.01,
    margin: float = 0.0,
    margin_kind: str = "absolute",
    same_side: bool = True,
    hard: bool = False,
) -> Array:
    """InfoNCE without the negatives that a guide takes for positives (GISTEmbed).

    Solatorio 2024. One softmax over documents, other queries and other positives. A
    text is left out of query i's softmax if the guide finds it more similar than the
    guide finds the query and its positive, by the cosines of its vectors in the labels.
    The positive itself always stays, and equal texts are left out as in `infonce`.

    Args:
        scores: Similarities of b rows of the batch.
        labels: The guide's vectors of all texts, and ids of equal texts.
        temperature: Divisor of the similarities.
        margin: Texts are left out from this far below the positive on.
        margin_kind: "absolute", or "relative" to the guide's cosine of the positive.
        same_side: Whether queries are contrasted with other queries, and positives with
            other positives.
        hard: Whether only texts that the model finds as similar as the query and its
            positive, or more, are negatives (the code's hard mode).

    Returns:
        [b] float32 loss per query.

    Raises:
        ValueError: The labels have no vectors, or the margin's kind is unknown.
    """
    check_option("margin_kind", margin_kind, ("absolute", "relative"))
    guide = PairScores(teacher_pairs(labels, scores.vectors), "cosine")
    # [b, 1] the guide's highest similarity of a negative
    limit = _positives(guide)[:, None]
    limit -= margin * (jnp.abs(limit) if margin_kind == "relative" else 1.0)
    allowed = _allowed_pairs(scores, labels, None)

    def select(kind: str) -> Array:
        chosen = getattr(guide, kind) <= limit
        return chosen & (getattr(scores, kind) >= own) if hard else chosen

    # [b, B*K] documents; the guide does not reject the positive
    own = _positives(scores)[:, None]
    documents = allowed.query_document & select("query_document")
    documents |= _is_positive(scores.vectors)
    blocks = [_mask_logits(scores.query_document / temperature, documents)]
    if same_side:
        # [b, B] other queries, and positives of other queries
        queries = allowed.query_query & select("query_query")
        positives = allowed.positive_document[:, :: scores.vectors.docs_per_query]
        positives &= select("positive_positive")
        blocks += [
            _mask_logits(scores.query_query / temperature, queries),
            _mask_logits(scores.positive_positive / temperature, positives),
        ]
    return _logsumexp(*blocks) - _positives(scores) / temperature


class AllowedPairs(NamedTuple):
    """Which pairs of texts a softmax contrasts.

    Attributes:
        query_document: [b, B*K] bool, query i and document j, including the positive.
        positive_query: [b, B] bool, positive i and query j, including i = j.
        query_query: [b, B] bool, queries i and j != i.
        positive_document: [b, B*K] bool, positive i and document j of another query.
    """

    query_document: Array
    positive_query: Array
    query_query: Array
    positive_document: Array


def _allowed_pairs(
    scores: PairScores, labels: Labels, margin: float | None
) -> AllowedPairs:
    """The positives, and pairs of different texts with scores within the margin."""
    num_docs = scores.vectors.docs_per_query
    diagonal = scores.vectors.is_own  # [b, B]
    same_query, same_document = find_same_texts(scores.vectors, labels)

    # [b, B*K] documents whose text is not the positive's, and whose query's text is not
    # this query's
    of_same_query = jnp.repeat(same_query & ~diagonal, num_docs, axis=1)
    documents = ~(of_same_query | same_document)
    # The same without the query's own documents; [b, B] pairs of different texts
    of_others = documents & ~jnp.repeat(diagonal, num_docs, axis=1)
    different = ~(same_query | same_document[:, ::num_docs] | diagonal)

    def within_margin(allowed, read_scores):
        # Scores that no loss needs are not computed
        if margin is None:
            return allowed
        return allowed & (read_scores() <= _positives(scores)[:, None] + margin)

    return AllowedPairs(
        within_margin(documents, lambda: scores.query_document)
        | _is_positive(scores.vectors),
        within_margin(different, lambda: scores.positive_query) | diagonal,
        within_margin(different, lambda: scores.query_query),
        within_margin(of_others, lambda: scores.positive_document),
    )


def find_same_texts(vectors: PairVectors, labels: Labels) -> tuple[Array, Array]:
    """Queries that equal query i [b, B], and documents that equal positive i [b, B*K].

    A query equals itself, and so does a positive. Without ids all entries are False.
    """
    rows, count = len(vectors.queries), len(vectors.all_queries)
    num_docs = vectors.docs_per_query
    same_query = jnp.zeros((rows, count), bool)
    same_document = jnp.zeros((rows, count * num_docs), bool)
    if (ids := labels.query_id) is not None:
        chex.assert_shape(ids, (count, 2))
        same_query = jnp.all(vectors.take_rows(ids)[:, None] == ids[None], axis=-1)
    if (ids := labels.document_id) is not None:
        chex.assert_shape(ids, (count * num_docs, 2))
        positives = vectors.take_rows(ids[::num_docs])  # [b, 2]
        same_document = jnp.all(positives[:, None] == ids[None], axis=-1)
    return same_query, same_document


def _is_positive(vectors: PairVectors) -> Array:
    """[b, B*K] bool, whether document j is query i's positive."""
    documents = jnp.arange(len(vectors.all_documents))
    return (vectors.rows * vectors.docs_per_query)[:, None] == documents[None, :]


def _positives(scores: PairScores) -> Array:
    """[b] score of each query's positive, bit for bit that of `query_document`."""
    is_positive = _is_positive(scores.vectors)
    return jnp.sum(jnp.where(is_positive, scores.query_document, 0.0), axis=1)


def _same_side_logits(
    scores: PairScores, allowed: AllowedPairs, temperature: float
) -> list[Array]:
    """Logits among queries, [b, B], and of positives with documents, [b, B*K]."""
    return [
        _mask_logits(scores.query_query / temperature, allowed.query_query),
        _mask_logits(scores.positive_document / temperature, allowed.positive_document),
    ]


def _mask_logits(logits: Array, allowed: Array) -> Array:
    return jnp.where(allowed, logits, NEG_INF)


def _logsumexp(*blocks: Array) -> Array:
    """[b] logsumexp over the rows of all blocks [b, ...], not concatenated."""
    # [b, number of blocks]
    parts = jnp.stack([jax.nn.logsumexp(block, axis=1) for block in blocks], axis=1)
    return jax.nn.logsumexp(parts, axis=1)
