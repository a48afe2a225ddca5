"""BGE-M3's three embeddings of a text: dense, weights of its tokens, token vectors."""

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling, cls_pool, first_token_mask
from research.transforms.token_rows import TERM_WIDTH, join_rows
from research.types import Array, Key, Params

# {output: the kind of its embeddings}
OUTPUTS = {
    "all": "m3",
    "dense": "dense",
    "sparse": "sparse",
    "multi_vector": "multi_vector",
}


def m3(*, output: str = "all") -> LearnedPooling:
    """Three embeddings of one encoder (Chen et al. 2024, BGE-M3).

    The dense one is the first token's state. The weight of a token is relu(a h + b) of
    its state h, that of a token of the vocabulary the maximum over its occurrences; the
    first and the last token, [CLS] and [SEP], have none. The vectors of tokens are
    their projected states, without the first one.

    Args:
        output: "all" for the three together, in rows as in `transforms.token_rows`, as
            they are trained; "dense", "sparse" or "multi_vector" for one of them.
    """
    check_option("pool.output", output, OUTPUTS)

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del params
        sparse_key, token_key = jax.random.split(key)
        return {
            "sparse": {
                "kernel": KERNEL_INIT(sparse_key, (cfg.width, 1)),
                "bias": jnp.zeros(1),
            },
            "tokens": {
                "kernel": KERNEL_INIT(token_key, (cfg.width, cfg.width)),
                "bias": jnp.zeros(cfg.width),
            },
        }

    def pool(
        params: Params,
        cfg: EncoderConfig,
        tokens: Array,
        mask: Array,
        token_ids: Array,
    ) -> Array:
        # The heads of tokens are not needed
        if output == "dense":
            return cls_pool(tokens, mask)  # [B, M, D]
        heads = params["pooling"]
        states = tokens.astype(jnp.float32)
        # [B, S] tokens that are pooled, and those that begin and end a text
        is_pooled, is_first = mask.any(1), first_token_mask(mask).any(1)
        is_last = jnp.flip(first_token_mask(jnp.flip(mask, -1)), -1).any(1)
        # [B, S] weights, none of [CLS] and [SEP]
        weights = jax.nn.relu(_apply_linear(heads["sparse"], states)[..., 0])
        weights = jnp.where(is_pooled & ~is_first & ~is_last, weights, 0.0)
        if output == "sparse":
            return spread_weights(weights, token_ids, mask, cfg.vocab_size)
        # [B, S, D] vectors of tokens
        vectors = _apply_linear(heads["tokens"], states)
        if output == "multi_vector":
            return jnp.where((is_pooled & ~is_first)[:, :, None], vectors, 0.0)
        # [B, S, D + 4], zeros for what is not pooled
        vectors = jnp.where(is_first[:, :, None], states, vectors)
        rows = join_rows(token_ids[..., None], weights[..., None], vectors)
        return jnp.where(is_pooled[:, :, None], rows, 0.0)

    widths = {
        "sparse": lambda cfg: cfg.vocab_size,
        "all": lambda cfg: cfg.width + TERM_WIDTH,
    }
    return LearnedPooling(
        None if output == "dense" else init,
        pool,
        width=widths.get(output),
        kind=OUTPUTS[output],
        reads_token_ids=True,
    )


def spread_weights(
    weights: Array, token_ids: Array, mask: Array, vocab_size: int
) -> Array:
    """The largest weight of each token of the vocabulary in a text.

    Args:
        weights: [B, S] float32, not negative.
        token_ids: [B, S] int32.
        mask: [B, M, S] bool, the tokens of text m of the row.
        vocab_size: V.

    Returns:
        [B, M, V] float32.
    """

    def spread_row(row):
        values, ids, masks = row  # [S], [S], [M, S]
        # A maximum over the occurrences of a token
        empty = jnp.zeros((len(masks), vocab_size))
        return empty.at[:, ids].max(jnp.where(masks, values[None], 0.0))

    return jax.lax.map(spread_row, (weights, token_ids, mask))


def _apply_linear(params: Params, x: Array) -> Array:
    """x W + b of states [B, S, D]."""
    x = jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST)
    return x + params["bias"][None, None]
