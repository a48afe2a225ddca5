"""SeqPE: positions encoded as digit sequences by a small transformer (Li et al. 2025).

A causal pre-norm transformer computes the vector of a position from its decimal digits.
Each head of the encoder projects it for queries and for keys; the product of the two is
a bias of the attention logits, the form that the authors use by default.
"""

import chex
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.query_scale import logit_scale
from research.types import Array, Key, Params

DIGITS = 5
# The small transformer, and the channels E that it adds to each head of the encoder.
WIDTH = 32
DEPTH = 2
HEADS = 4
CHANNELS = 16
# Training of the vectors for positions beyond the texts: `penalty`.
FARTHEST = 20_000
WEIGHT = 0.1


def init_seqpe(key: Key, cfg: EncoderConfig) -> Params:
    """Random parameters: normal(0.02), as the encoder's.

    Raises:
        ValueError: The encoder's texts have more tokens than the digits can count.
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

    # Tables of digits and of their places, a transformer, a projection to the heads
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
        [B, S, H, E] and [B, S, KV, E] float32; their product over E is the bias of the
        logits. Queries that share a head of keys share its channels too.
    """
    chex.assert_rank(position, 2)
    x = position_vectors(params, position.reshape(-1))  # [B*S, WIDTH]

    def project_heads(name):
        y = jnp.einsum("nw,whe->nhe", x, params[name]["kernel"])
        return y.reshape(*position.shape, -1, CHANNELS)

    # TempScale is for full logits, so for the bias too.
    scale = logit_scale(cfg) * CHANNELS**-0.5
    return project_heads("query") * scale, project_heads("key")


def position_vectors(params: Params, position: Array) -> Array:
    """The vectors [N, WIDTH] float32 of positions [N]: those of their last digits."""
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
    """Trains the vectors of positions up to FARTHEST, longer than any text.

    Draws positions for `nearest_position_loss` from all, and for `transfer_loss` from
    the first `cfg.max_len`, shifted by a random distance; each has the weight of the
    paper. Simplified: both compare the biases of heads, the only use of the vectors
    here, and all positions are drawn uniformly.

    Returns:
        [] float32, to be added to the loss.
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
    """Cross-entropy of choosing, for each position, the nearest of the others.

    Args:
        bias: [H, N, N] biases of each pair of positions.
        position: [N] int32.

    Returns:
        [] float32, the mean over heads and positions.
    """
    chex.assert_shape(bias, (None, len(position), len(position)))
    is_self = jnp.eye(len(position), dtype=bool)
    distance = jnp.abs(position[:, None] - position[None])
    nearest = jnp.argmin(jnp.where(is_self, jnp.iinfo(jnp.int32).max, distance), axis=1)
    logits = jnp.where(is_self[None], jnp.finfo(jnp.float32).min, bias)
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, nearest[None, :, None], axis=2).mean()


def transfer_loss(inside: Array, outside: Array) -> Array:
    """KL of the attention among shifted positions from that among the unshifted ones.

    Args:
        inside: [H, N, N] biases of positions within the texts; not trained by this.
        outside: [H, N, N] biases of the same positions plus a distance.

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
