"""Attention in O(S) memory: scores stand in memory a block at a time."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.models.attention.dot_product import (
    Scored,
    Setting,
    attention_logits,
    dropout,
    make_attention_masks,
    products,
    softmax_weighted_sum,
    weighted,
)
from research.models.config import EncoderConfig
from research.models.positions.relative_rope import relation
from research.models.positions.segment_positions import Positions
from research.types import Array, Key

# Queries and keys of a block. At 4,096 tokens and 12 heads 512 x 256 took 226 ms,
# 128 x 256 548 ms (XLA uses both cores only from some size on), all keys 284 ms.
BLOCK = (512, 256)
# Scores that stand in memory at once: more leave the cache.
ELEMENTS = 2**22
# Queries of a block that sees a window: fewer see less beside their own windows.
WINDOWED = 128
# Above the scores of what is hidden, below all others: what is hidden weighs nothing
# even where nothing was seen yet.
LOWEST = float(jnp.finfo(jnp.float32).min) / 2


class Side(NamedTuple):
    """Queries or keys: vectors [B, S, H or KV, E] for each branch, and their places."""

    vectors: tuple[Array, ...]
    places: Positions


def blockwise(
    cfg: EncoderConfig,
    x: Scored,
    setting: Setting,
    *,
    block: tuple[int, int] | None = None,
) -> Array:
    """Attention of rows to themselves in O(S) memory, its gradient too.

    Args:
        cfg: the encoder's shape.
        x: queries, keys and values of rows [B, S].
        setting: `local` says whether this is a local block, None where no block is. A
            local block costs what its window costs.
        block: queries and keys of a block; None chooses.

    Returns:
        [B, S, H, D/H] in the type of v; zero where a token sees nothing.
    """
    rows, columns = block or _block(x.query[0].shape)
    few = min(rows, WINDOWED)
    if setting.local is None or few + 2 * cfg.window >= x.v.shape[1]:
        return _whole(cfg, (rows, columns), x, setting)
    everywhere = setting._replace(local=None)
    return jax.lax.cond(
        setting.local,
        partial(_windowed, cfg, few, max(1, rows // few)),
        partial(_whole, cfg, (rows, columns)),
        x,
        everywhere,
    )


def _block(shape: tuple[int, ...]) -> tuple[int, int]:
    """Queries and keys of a block for queries [B, S, H, E]: small if rows are many."""
    rows, columns = BLOCK
    while shape[0] * shape[2] * rows * columns > ELEMENTS and rows > 128:
        rows, columns = columns, rows // 2
    return _even(shape[1], rows), _even(shape[1], columns)


def _even(length: int, block: int) -> int:
    """Equal blocks, multiples of 8, instead of a short last one."""
    count = -(-length // block)
    return -(-length // (8 * count)) * 8


def _windowed(
    cfg: EncoderConfig, few: int, group: int, x: Scored, setting: Setting
) -> Array:
    """A local block: rows of `few` queries, each with the keys that these may see.

    `group` of them are computed together.
    """
    b, length = x.v.shape[:2]
    count = -(-length // (few * group)) * group
    width = few + 2 * cfg.window

    def folded(tree, before, width):
        """[B, S, ...] as [count / group, B * group, width, ...]."""
        tree = _padded(tree, before, few * count + before - length)
        places = np.add.outer(few * np.arange(count), np.arange(width))

        def fold(a):
            a = a[:, places].reshape(b, -1, group, width, *a.shape[2:])
            return jnp.moveaxis(a, 1, 0).reshape(-1, b * group, *a.shape[3:])

        return jax.tree.map(fold, tree)

    @jax.checkpoint
    def attended(number, q, k, v):
        block = Scored(x.relative, q.vectors, k.vectors, v)
        windowed = setting._replace(local=jnp.bool_(True))
        s = _scores(cfg, block, windowed, q.places, k.places)
        return softmax_weighted_sum(
            s, v, cfg.dropout, _folded(setting.dropout_key, number)
        )

    queries = folded(Side(x.query, setting.places), 0, few)
    keys = folded((Side(x.key, setting.places), x.v), cfg.window, width)
    blocks = jnp.arange(count // group), queries, *keys
    y = jax.lax.map(lambda block: attended(*block), blocks)
    y = jnp.moveaxis(y.reshape(-1, b, group * few, *y.shape[3:]), 0, 1)
    return y.reshape(b, -1, *y.shape[3:])[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _whole(
    cfg: EncoderConfig, block: tuple[int, int], x: Scored, setting: Setting
) -> Array:
    """The softmax block by block (Milakov & Gimelshein 2018; Rabe & Staats 2021)."""
    return _forward(cfg, block, x, setting)[0]


def _forward(cfg, block, x, setting):
    """(y, what the gradient needs)."""
    queries, keys, seen = _blocks(cfg, block, x, setting)
    numbers = jnp.arange(len(seen))
    row = partial(_row, cfg, x.relative, setting, keys)
    y, logsumexp = jax.lax.map(lambda xs: row(*xs), (numbers, queries, seen))
    y = _joined(y, x.v.shape[1])
    return y, (x, setting, y, logsumexp)


def _row(cfg, relative, setting, keys, number, query, seen):
    """A block of queries, with all blocks of keys that it sees any of.

    Returns:
        [B, block, H, D/H], and the logarithm of the sum of the exponentials of its
        scores, [B, H, block, 1].
    """

    def add(carry, column, key, v):
        top, total, y = carry
        x = Scored(relative, query.vectors, key.vectors, v)
        s = _scores(cfg, x, setting, query.places, key.places)
        higher = jnp.maximum(top, s.max(-1, keepdims=True))
        weights, shrink = jnp.exp(s - higher), jnp.exp(top - higher)
        total = total * shrink + weights.sum(-1, keepdims=True)
        chosen = _folded(setting.dropout_key, number, column)
        weights = dropout(weights, cfg.dropout, chosen).astype(v.dtype)
        return higher, total, y * shrink + weighted(weights, v)

    def step(carry, xs):
        seen, *rest = xs
        return jax.lax.cond(seen, add, lambda same, *_: same, carry, *rest), None

    v = keys[1]
    b, size, h = query.vectors[0].shape[:3]
    zero = jnp.zeros((b, h, size, 1))
    start = (zero + LOWEST, zero, jnp.repeat(zero, v.shape[-1], axis=-1))
    xs = (seen, jnp.arange(len(seen)), *keys)
    (top, total, y), _ = jax.lax.scan(step, start, xs)
    total = jnp.where(total > 0, total, 1)
    return (y / total).astype(v.dtype).transpose(0, 2, 1, 3), top + jnp.log(total)


def _backward(cfg, block, saved, dy):
    """Cotangents of the queries, keys and values (FlashAttention, Dao et al. 2022)."""
    x, setting, y, logsumexp = saved
    queries, keys, seen = _blocks(cfg, block, x, setting)
    delta = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    rows = (*_split((dy, delta), block[0]), logsumexp)
    start = (_zeros(x.relative), _zeros((keys[0].vectors, keys[1])))
    xs = (jnp.arange(len(seen)), seen, queries, rows)
    row = partial(_row_gradient, cfg, x.relative, setting, keys)
    (relative, sums), dq = jax.lax.scan(row, start, xs)
    sums = jax.tree.map(lambda a: _joined(a, x.v.shape[1]), (dq, *sums))
    dx = Scored(relative, *sums)
    return jax.tree.map(lambda a, like: a.astype(like.dtype), dx, x), None


def _row_gradient(cfg, params, setting, keys, carry, xs):
    """Adds the cotangents of keys and values of a block of queries; returns its own."""
    number, seen, query, rest = xs

    def column(carry, xs):
        other, seen, key, v, sums = xs

        def add(carry, sums):
            block = Scored(params, query.vectors, key.vectors, v)
            where = (number, other), query.places, key.places
            d = jax.grad(_surrogate)(block, cfg, setting, *where, *rest)
            return _sum(carry, (d.relative, d.query)), _sum(sums, (d.key, d.v))

        return jax.lax.cond(seen, add, lambda *same: same, carry, sums)

    relative, sums = carry
    start = (relative, _zeros(query.vectors))
    xs = (jnp.arange(len(seen)), seen, *keys, sums)
    (relative, dq), sums = jax.lax.scan(column, start, xs)
    return (relative, sums), dq


def _surrogate(x, cfg, setting, numbers, query, key, dy, delta, logsumexp):
    """What has the derivatives of a block: sum(weights * (dy v' - dy y)).

    Weights are exp(scores - logsumexp) with a constant logsumexp.
    """
    inner = products(dy, x.v)
    inner = dropout(inner, cfg.dropout, _folded(setting.dropout_key, *numbers))
    inner -= delta.transpose(0, 2, 1, 3)
    return (jnp.exp(_scores(cfg, x, setting, query, key) - logsumexp) * inner).sum()


def _scores(cfg, x, setting, query, key):
    """Scores [B, H, q, k] of queries and keys that stand at these places."""
    terms = make_attention_masks(cfg, relation(cfg), x.relative, query, key)
    return attention_logits(cfg, x.query, x.key, terms, setting.local)


_whole.defvjp(_forward, _backward)


def _blocks(cfg, block, x, setting):
    """Blocks of queries, a Side; of keys and values; [n, m] bool, which see which."""
    queries = _split(Side(x.query, setting.places), block[0])
    keys = _split((Side(x.key, setting.places), x.v), block[1])
    seen = _seen(cfg, queries.places, keys[0].places, setting.local)
    return queries, keys, seen


def _seen(
    cfg: EncoderConfig, query: Positions, key: Positions, local: Array | None
) -> Array:
    """Whether any query of a block may see any key of a block: [n, m] bool.

    Some pairs of blocks of which none does are not found: where the texts of a row are
    not in the order of their numbers.

    Args:
        cfg: the encoder's shape.
        query: places [n, B, block].
        key: places [m, B, block].
        local: as in Setting.
    """

    def ends(places):
        number = jnp.where(places.segment_ids > 0, places.segment_ids, 2**30)
        ends = number.min(-1), places.segment_ids.max(-1)
        return (*ends, places.row_positions[:, 0, 0], places.row_positions[:, 0, -1])

    low, high, first, last = (a[:, None] for a in ends(query))
    klow, khigh, kfirst, klast = (a[None] for a in ends(key))
    seen = ((low <= khigh) & (klow <= high)).any(-1)
    if cfg.anchor_token:
        seen |= kfirst == 0
    if cfg.causal:
        seen &= kfirst <= last
    if local is not None:
        near = (kfirst - last <= cfg.window) & (first - klast <= cfg.window)
        seen &= near | ~local
    return seen


def _split(tree: Any, size: int) -> Any:
    """[B, S, ...] as blocks [n, B, size, ...], padded by tokens that see nothing."""
    length = jax.tree.leaves(tree)[0].shape[1]

    def split(a):
        return jnp.moveaxis(a.reshape(len(a), -1, size, *a.shape[2:]), 1, 0)

    return jax.tree.map(split, _padded(tree, 0, -length % size))


def _joined(blocks: Array, length: int) -> Array:
    """[n, B, size, ...] as [B, length, ...]."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def _padded(tree: Any, before: int, after: int) -> Any:
    """Zeros around the second axis; the index of places counts on."""

    def pad(a):
        if isinstance(a, Positions):
            index = jnp.arange(
                -before, a.row_positions.shape[1] + after, dtype=jnp.int32
            )
            return Positions(*map(pad, a))._replace(
                row_positions=jnp.broadcast_to(
                    index, (len(a.row_positions), len(index))
                )
            )
        return jnp.pad(a, [(0, 0), (before, after)] + [(0, 0)] * (a.ndim - 2))

    return jax.tree.map(pad, tree, is_leaf=lambda a: isinstance(a, Positions))


def _folded(key: Key | None, *numbers: Array) -> Key | None:
    """A key of its own for each block."""
    for number in numbers:
        key = None if key is None else jax.random.fold_in(key, number)
    return key


def _sum(left: Any, right: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), left, right)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)
