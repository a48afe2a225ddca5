"""Weights of the vocabulary's tokens: for a text (SPLADE), or for each token (SLIM)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.heads import apply_mlm_head, init_mlm_head, output_embeddings
from research.models.pooling.basic import LearnedPooling, first_token_mask
from research.models.pooling.lexical import map_logits, max_logits, pool_logits
from research.transforms.token_rows import TERM_WIDTH, join_rows
from research.types import Array, Key, Params


def splade(
    *, aggregate: str = "max", activation: str = "log1p", top: int = 0
) -> LearnedPooling:
    """Weights of the tokens of the vocabulary for a text (Formal et al. 2021, SPLADE).

    A weight is the maximum over the text's tokens of log(1 + relu(logit)), where logits
    are those of a masked language model's head. The head is that of the model that the
    run starts from, if it has one, else random.

    Args:
        aggregate: "max" (SPLADE v2), or "sum" over the tokens (the first version).
        activation: "log1p", or "log1p_twice" for log(1 + log(1 + relu(logit)))
            (OpenSearch's third version).
        top: Number of the largest weights that are kept; 0 keeps all.
    """
    check_option("pool.aggregate", aggregate, ("max", "sum"))
    check_option("pool.activation", activation, ACTIVATIONS)
    activate = ACTIVATIONS[activation]

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        if not 0 <= top <= cfg.vocab_size:
            raise ValueError(f"pool.top is {top}; allowed: 0 ... {cfg.vocab_size}")
        head = params["head"] if "head" in params else init_mlm_head(key, cfg)
        return {"head": head}

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        # [B, S, D] states, whose products with the token table are logits
        head = params["pooling"]["head"]
        states = apply_mlm_head(head, tokens, cfg)
        arguments = (states, output_embeddings(params), head["bias"], mask)
        # The activation is monotone, so it can be applied after the maximum
        if aggregate == "max":
            weights = activate(max_logits(*arguments))  # [B, M, V]
        else:
            weights = pool_logits(*arguments, sum_weights)
        return keep_largest(weights, top) if top else weights

    def sum_weights(logits: Array, mask: Array) -> Array:
        return jnp.where(mask[:, None], activate(logits), 0.0).sum(0)

    return LearnedPooling(
        init,
        pool,
        reuses_head=True,
        width=lambda cfg: cfg.vocab_size,
        kind="sparse",
    )


def splade_doc(
    *,
    aggregate: str = "max",
    activation: str = "log1p",
    top: int = 0,
    learn_queries: bool = False,
) -> LearnedPooling:
    """SPLADE of documents; a query is the set of its tokens, without an encoder.

    Formal et al. 2021, SPLADE-doc. The weight of a query's token is 1, or learned; that
    of all others is 0, however often the token occurs. The prompt `inference_free`
    leaves the special tokens out of queries.

    Args:
        aggregate, activation, top: As in `splade`, of documents.
        learn_queries: Whether the weights of queries' tokens are trained, from 1.
    """
    documents = splade(aggregate=aggregate, activation=activation, top=top)

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        weights = jnp.ones(cfg.vocab_size)
        return {**documents.init(key, cfg, params), "query_weights": weights}

    def pool_query(
        params: Params, cfg: EncoderConfig, token_ids: Array, mask: Array
    ) -> Array:
        # [V] weights, which are 1 unless they are trained
        weights = params["pooling"]["query_weights"]
        if not learn_queries:
            weights = jax.lax.stop_gradient(weights)
        presence = mark_tokens(token_ids, mask, cfg.vocab_size)  # [B, M, V]
        return presence * weights[None, None]

    return documents._replace(init=init, pool_query=pool_query)


def slim(*, top: int = 20) -> LearnedPooling:
    """Weights of terms of the vocabulary for each token (Li et al. 2023, SLIM).

    The weights of a token are log(1 + relu(logit)) of the head of a masked language
    model, as in `splade`, of which the largest are kept: of equal ones, those of the
    smallest ids, where the authors keep all. The first token, [CLS], has none. Tokens
    are rows as in `transforms.token_rows`.

    Args:
        top: K, the number of terms of a token.
    """
    if top < 1:
        raise ValueError(f"pool.top is {top}; a token needs at least one term")
    # The same head, which a model of one pooling lends to the other
    base = splade(top=top)

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        head = params["pooling"]["head"]
        states = apply_mlm_head(head, tokens, cfg)
        # [B, S] tokens that are scored
        is_scored = mask.any(1) & ~first_token_mask(mask).any(1)

        def take_terms(logits: Array, is_scored: Array) -> Array:
            # The activation is monotone, so it can be applied to the largest alone
            largest, ids = jax.lax.top_k(logits, top)  # [S, K]
            weights = jnp.where(is_scored[:, None], _log1p_relu(largest), 0.0)
            return join_rows(ids, weights)

        # [B, S, 4 K]
        return map_logits(
            take_terms, states, output_embeddings(params), head["bias"], is_scored
        )

    return base._replace(pool=pool, width=lambda cfg: TERM_WIDTH * top, kind="slim")


def mark_tokens(token_ids: Array, mask: Array, vocab_size: int) -> Array:
    """1 for the tokens of the vocabulary that a text has, 0 for others.

    Args:
        token_ids: [B, S] int32.
        mask: [B, M, S] bool, the tokens of text m of the row that count.
        vocab_size: V.

    Returns:
        [B, M, V] float32.
    """

    def mark_row(row):
        ids, masks = row  # [S], [M, S]
        # A maximum, so that a token that occurs twice counts once
        empty = jnp.zeros((len(masks), vocab_size))
        return empty.at[:, ids].max(masks.astype(jnp.float32))

    return jax.lax.map(mark_row, (token_ids, mask))


def keep_largest(weights: Array, top: int) -> Array:
    """The weights [..., V] that are among the `top` largest of a text; 0 for others."""
    threshold = jax.lax.top_k(weights, top)[0][..., -1:]
    return jnp.where(weights >= threshold, weights, 0.0)


def _log1p_relu(x: Array) -> Array:
    return jnp.log1p(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "log1p": _log1p_relu,
    "log1p_twice": lambda x: jnp.log1p(_log1p_relu(x)),
}
