"""SeqPE: positions read as sequences of digits by a small transformer (Li et al. 2025).

The vector of a position is what a causal pre-norm transformer makes of its decimal
digits. Each head of the encoder projects it for queries and for keys; the product of
the two is a bias of the attention scores, the form that the authors use by default.
"""

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
# Training of the vectors for positions not seen: `penalty`.
FARTHEST = 20_000
WEIGHT = 0.1


def init_seqpe(key: Key, cfg: EncoderConfig) -> Params:
    """Random parameters: normal(0.02), as the encoder's.

    Raises:
        ValueError: the encoder's texts are longer than the digits count.
    """
    if cfg.max_len > 10**DIGITS:
        raise ValueError(
            f"seqpe reads {DIGITS} digits, so texts of at most {10**DIGITS} tokens; "
            f"encoder.max_len is {cfg.max_len}"
        )
    keys = iter(jax.random.split(key, 10))

    def kernel(*shape):
        return {"kernel": 0.02 * jax.random.normal(next(keys), shape)}

    def table(rows):
        return {"embedding": 0.02 * jax.random.normal(next(keys), (rows, WIDTH))}

    def norm(*stack):
        shape = (*stack, WIDTH)
        return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}

    return {
        "digit": table(10),
        "place": table(DIGITS),
        "blocks": {
            "attention_norm": norm(DEPTH),
            **{name: kernel(DEPTH, WIDTH, WIDTH) for name in ATTENTION},
            "mlp_norm": norm(DEPTH),
            "up": kernel(DEPTH, WIDTH, 4 * WIDTH),
            "down": kernel(DEPTH, 4 * WIDTH, WIDTH),
        },
        "final_norm": norm(),
        "query": kernel(WIDTH, cfg.num_heads, CHANNELS),
        "key": kernel(WIDTH, cfg.num_kv_heads, CHANNELS),
    }


def channels(
    params: Params, cfg: EncoderConfig, position: Array
) -> tuple[Array, Array]:
    """What the query and key channels of a token at `position` are.

    Args:
        params: as `init` makes them.
        cfg: the encoder's shape.
        position: [B, S] int32 below 10^DIGITS.

    Returns:
        [B, S, H, E] and [B, S, KV, E] float32; their product over E is the bias of the
        scores. Queries that share a head of keys share its channels too.
    """
    x = vectors(params, position.reshape(-1))

    def heads(name):
        y = jnp.einsum("nw,whe->nhe", x, params[name]["kernel"])
        return y.reshape(*position.shape, -1, CHANNELS)

    # The temperature is of whole scores, as for other biases (`temperature`).
    return heads("query") * (logit_scale(cfg) * CHANNELS**-0.5), heads("key")


def vectors(params: Params, position: Array) -> Array:
    """The vectors [N, WIDTH] float32 of positions [N]: of their last digits."""
    powers = 10 ** jnp.arange(DIGITS - 1, -1, -1, dtype=jnp.int32)
    digits = position[:, None] // powers[None] % 10
    x = params["digit"]["embedding"][digits] + params["place"]["embedding"][None]

    def block(x, p):
        x = x + _attention(p, _norm(p["attention_norm"], x))
        y = _norm(p["mlp_norm"], x) @ p["up"]["kernel"]
        return x + jax.nn.gelu(y) @ p["down"]["kernel"], None

    x, _ = jax.lax.scan(block, x.reshape(-1, WIDTH), params["blocks"])
    return _norm(params["final_norm"], x.reshape(-1, DIGITS, WIDTH)[:, -1])


def penalty(key: Key, params: Params, cfg: EncoderConfig, *, count: int = 32) -> Array:
    """Trains the vectors of positions up to FARTHEST, longer than any text.

    Draws positions for `nearest` from all, and for `transfer` from the first
    `cfg.max_len`, shifted by a random distance; each has the weight of the paper.
    Simplified: both compare the biases of heads, the only use of the vectors here, and
    all positions are drawn uniformly.

    Returns:
        [] float32, to be added to the loss.
    """
    far_key, near_key, shift_key = jax.random.split(key, 3)
    far = jax.random.randint(far_key, (count,), 0, FARTHEST)
    near = jax.random.randint(near_key, (count,), 0, cfg.max_len)
    shift = jax.random.randint(shift_key, (), 0, max(1, FARTHEST - cfg.max_len))
    position = jnp.stack([far, near, near + shift])
    query, key = channels(params, cfg, position)
    key = jnp.repeat(key, cfg.num_heads // cfg.num_kv_heads, axis=2)
    scores = jnp.einsum("bqhe,bkhe->bhqk", query, key)
    return WEIGHT * (nearest(scores[0], far) + transfer(scores[1], scores[2]))


def nearest(scores: Array, position: Array) -> Array:
    """Cross-entropy of choosing, for each position, the nearest of the others.

    Args:
        scores: [H, N, N] biases of each pair of positions.
        position: [N] int32.

    Returns:
        [] float32, the mean over heads and positions.
    """
    itself = jnp.eye(len(position), dtype=bool)
    distance = jnp.abs(position[:, None] - position[None])
    right = jnp.argmin(jnp.where(itself, jnp.iinfo(jnp.int32).max, distance), axis=1)
    logits = jnp.where(itself[None], jnp.finfo(jnp.float32).min, scores)
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, right[None, :, None], axis=2).mean()


def transfer(inside: Array, outside: Array) -> Array:
    """KL of the attention among shifted positions from that among the unshifted ones.

    Args:
        inside: [H, N, N] biases of positions seen in training; not trained by this.
        outside: [H, N, N] those of the same positions plus a distance.

    Returns:
        [] float32, the mean over heads and positions.
    """
    target = jax.nn.log_softmax(jax.lax.stop_gradient(inside))
    gap = target - jax.nn.log_softmax(outside)
    return (jnp.exp(target) * gap).sum(-1).mean()


def _attention(p: Params, x: Array) -> Array:
    """Causal attention among the digits of each position: [N*DIGITS, WIDTH]."""

    def heads(name):
        return (x @ p[name]["kernel"]).reshape(-1, DIGITS, HEADS, WIDTH // HEADS)

    y = jax.nn.dot_product_attention(
        heads("query"), heads("key"), heads("value"), is_causal=True
    )
    return y.reshape(-1, WIDTH) @ p["out"]["kernel"]


def _norm(p: Params, x: Array) -> Array:
    return jax.nn.standardize(x, epsilon=1e-5) * p["scale"][None] + p["bias"][None]


ATTENTION = ("query", "key", "value", "out")
