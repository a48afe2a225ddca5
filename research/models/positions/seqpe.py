"""SeqPE: positions encoded as digit sequences by a small transformer (Li et al. 2025).

A small causal pre-norm transformer computes a vector for a position from its decimal
digits. Each head of the encoder projects it for queries and for keys; the product of
the projections is a bias of the attention logits, the authors' default variant.
"""

import chex
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.query_scale import logit_scale
from research.types import Array, Key, Params

DIGITS = 5
# Sizes of the transformer, and number E of channels that it adds to each head.
WIDTH = 32
DEPTH = 2
HEADS = 4
CHANNELS = 16
# `penalty`: largest position that is trained, and weight of the losses.
FARTHEST = 20_000
WEIGHT = 0.1


def init_seqpe(key: Key, cfg: EncoderConfig) -> Params:
    """Random parameters, normal with standard deviation 0.02, as in the encoder.

    Raises:
        ValueError: The encoder's longest text exceeds the number of digits.
    """
    if cfg.max_len > 10**DIGITS:
        raise ValueError(
            f"seqpe reads {DIGITS} digits, so texts of at most {10**DIGITS} tokens; "
            f"encoder.max_len is {cfg.max_len}"
        )
    keys = iter(jax.random.split(key, 10))

    def init_kernel(*shape):
        return {"kernel": 0.02 * jax.random.normal(next(keys), shape)}

    def init_table(rows):
        return {"embedding": 0.02 * jax.random.normal(next(keys), (rows, WIDTH))}

    def init_norm(*stack):
        shape = (*stack, WIDTH)
        return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}

    # Embeddings of digits and of their places, the transformer, projections to heads
    return {
        "digit": init_table(10),
        "place": init_table(DIGITS),
        "blocks": {
            "attention_norm": init_norm(DEPTH),
            **{name: init_kernel(DEPTH, WIDTH, WIDTH) for name in ATTENTION},
            "mlp_norm": init_norm(DEPTH),
            "up": init_kernel(DEPTH, WIDTH, 4 * WIDTH),
            "down": init_kernel(DEPTH, 4 * WIDTH, WIDTH),
        },
        "final_norm": init_norm(),
        "query": init_kernel(WIDTH, cfg.num_heads, CHANNELS),
        "key": init_kernel(WIDTH, cfg.num_kv_heads, CHANNELS),
    }


def position_channels(
    params: Params, cfg: EncoderConfig, position: Array
) -> tuple[Array, Array]:
    """Channels of each position that are appended to queries and to keys.

    Args:
        params: Parameters from `init_seqpe`.
        cfg: The encoder's shape.
        position: [B, S] int32 below 10^DIGITS.

    Returns:
        [B, S, H, E] and [B, S, KV, E] float32, whose products over E are the bias of
        the logits. Query heads that share a key head also share its channels.
    """
    chex.assert_rank(position, 2)
    x = position_vectors(params, position.reshape(-1))  # [B*S, WIDTH]

    def project_heads(name):
        y = jnp.einsum("nw,whe->nhe", x, params[name]["kernel"])
        return y.reshape(*position.shape, -1, CHANNELS)

    # TempScale applies to full logits, so to the bias too
    scale = logit_scale(cfg) * CHANNELS**-0.5
    return project_heads("query") * scale, project_heads("key")


def position_vectors(params: Params, position: Array) -> Array:
    """Vectors [N, WIDTH] float32 of positions [N]: final states of the last digits."""
    chex.assert_rank(position, 1)
    powers = 10 ** jnp.arange(DIGITS - 1, -1, -1, dtype=jnp.int32)
    digits = position[:, None] // powers[None] % 10  # [N, DIGITS]
    x = params["digit"]["embedding"][digits] + params["place"]["embedding"][None]

    def apply_block(x, p):  # x [N*DIGITS, WIDTH]
        x = x + attend_digits(p, _norm(p["attention_norm"], x))
        y = _norm(p["mlp_norm"], x) @ p["up"]["kernel"]
        return x + jax.nn.gelu(y) @ p["down"]["kernel"], None

    x, _ = jax.lax.scan(apply_block, x.reshape(-1, WIDTH), params["blocks"])
    return _norm(params["final_norm"], x.reshape(-1, DIGITS, WIDTH)[:, -1])


def penalty(key: Key, params: Params, cfg: EncoderConfig, *, count: int = 32) -> Array:
    """Losses that train the vectors of positions up to FARTHEST, longer than any text.

    Positions are sampled from all positions for `nearest_position_loss`, and from the
    first `cfg.max_len`, plus a random shift, for `transfer_loss`; both have the paper's
    weight. Simplifications: both losses compare the attention biases of heads, which
    are the only use of the vectors here, and positions are sampled uniformly.

    Returns:
        [] float32, an addend of the training loss.
    """
    far_key, near_key, shift_key = jax.random.split(key, 3)
    far = jax.random.randint(far_key, (count,), 0, FARTHEST)
    near = jax.random.randint(near_key, (count,), 0, cfg.max_len)
    shift = jax.random.randint(shift_key, (), 0, max(1, FARTHEST - cfg.max_len))
    position = jnp.stack([far, near, near + shift])  # [3, N]
    query, key = position_channels(params, cfg, position)
    key = jnp.repeat(key, cfg.num_heads // cfg.num_kv_heads, axis=2)
    bias = jnp.einsum("bqhe,bkhe->bhqk", query, key)  # [3, H, N, N]
    nearest = nearest_position_loss(bias[0], far)
    return WEIGHT * (nearest + transfer_loss(bias[1], bias[2]))


def nearest_position_loss(bias: Array, position: Array) -> Array:
    """Cross-entropy of predicting the nearest other position of each position.

    Args:
        bias: [H, N, N] attention biases of all pairs of positions.
        position: [N] int32 positions.

    Returns:
        [] float32, the mean over heads and positions.
    """
    chex.assert_shape(bias, (None, len(position), len(position)))
    # [N] index of the nearest other position
    is_self = jnp.eye(len(position), dtype=bool)
    distance = jnp.abs(position[:, None] - position[None])
    nearest = jnp.argmin(jnp.where(is_self, jnp.iinfo(jnp.int32).max, distance), axis=1)
    # [H, N, N] logits without the position itself
    logits = jnp.where(is_self[None], jnp.finfo(jnp.float32).min, bias)
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, nearest[None, :, None], axis=2).mean()


def transfer_loss(inside: Array, outside: Array) -> Array:
    """KL divergence between attention among unshifted and among shifted positions.

    Args:
        inside: [H, N, N] biases of positions within the texts, without gradient.
        outside: [H, N, N] biases of the same positions plus a shift.

    Returns:
        [] float32, the mean over heads and positions.
    """
    chex.assert_equal_shape([inside, outside])
    target = jax.nn.log_softmax(jax.lax.stop_gradient(inside))
    gap = target - jax.nn.log_softmax(outside)
    return (jnp.exp(target) * gap).sum(-1).mean()


def attend_digits(p: Params, x: Array) -> Array:
    """Causal attention among the digits of each position: [N*DIGITS, WIDTH]."""

    def split_heads(name):
        return (x @ p[name]["kernel"]).reshape(-1, DIGITS, HEADS, WIDTH // HEADS)

    y = jax.nn.dot_product_attention(
        split_heads("query"), split_heads("key"), split_heads("value"), is_causal=True
    )
    return y.reshape(-1, WIDTH) @ p["out"]["kernel"]


def _norm(p: Params, x: Array) -> Array:
    return jax.nn.standardize(x, epsilon=1e-5) * p["scale"][None] + p["bias"][None]


ATTENTION = ("query", "key", "value", "out")
