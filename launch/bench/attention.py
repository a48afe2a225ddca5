"""What `launch.bench attention` measures: attention alone, by the length of its row."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.attention.attend import attend
from research.models.attention.inputs import make_attention_inputs
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import segment_positions
from research.types import Array

# Where rows are shorter, so many more of them: a batch as `eval.embed` makes it on CPU.
TOKENS = 1_024
# Longer rows are left out for 'plain': at 16,384 tokens its scores take 12 GiB.
PLAIN = {"forward": 8_192, "gradient": 4_096}
# Seconds after which no further turn of an implementation begins.
PATIENCE = 60.0
WINDOW = 64
KERNELS = {"gpu": ("flash",), "tpu": ("splash",)}


class Measured(NamedTuple):
    """One implementation at one length.

    Attributes:
        attention: the implementation; 'local' is 'auto' in a block of windows.
        what: 'forward' or 'gradient', of queries, keys and values.
        length: tokens of a row.
        rows: rows of the batch.
        seconds: the median of the turns.
        mebibytes: what the compiled program holds at most, beside its arguments.
    """

    attention: str
    what: str
    length: int
    rows: int
    seconds: float
    mebibytes: float


def measure(
    lengths: Sequence[int], heads: int, size: int, rounds: int, say: Callable
) -> list[Measured]:
    """Medians of turns of every implementation that this machine has.

    Args:
        lengths: tokens of a row.
        heads: H.
        size: channels of a head.
        rounds: turns of each; fewer of what takes long.
        say: told each row of the table.
    """
    names = ("plain", "blockwise", *KERNELS.get(jax.default_backend(), ()), "auto")
    found = []
    for what in ("forward", "gradient"):
        for length in lengths:
            chosen = [
                name
                for name in (*names, "local")
                if name != "plain" or length <= PLAIN[what]
            ]
            for row in _turns(chosen, what, length, heads, size, rounds):
                say(
                    f"{row.what:8} {row.length:6} tokens {row.attention:9} "
                    f"{1e3 * row.seconds:10.1f} ms {row.mebibytes:9.1f} MiB"
                )
                found.append(row)
    return found


def _turns(
    names: Sequence[str], what: str, length: int, heads: int, size: int, rounds: int
) -> list[Measured]:
    """The implementations, taking turns."""
    rows = max(1, TOKENS // length)
    runs = {name: _compiled(name, what, rows, length, heads, size) for name in names}
    seconds = {name: [] for name in names}
    for turn in range(rounds + 1):  # the first one warms up
        for name, (run, arguments, _) in runs.items():
            if sum(seconds[name]) > PATIENCE:
                continue
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            elapsed = time.perf_counter() - start
            if turn or elapsed > PATIENCE:
                seconds[name].append(elapsed)
    return [
        Measured(name, what, length, rows, statistics.median(seconds[name]), mebibytes)
        for name, (_, _, mebibytes) in runs.items()
    ]


def _compiled(
    name: str, what: str, rows: int, length: int, heads: int, size: int
) -> tuple[Callable, tuple[Array, ...], float]:
    """A compiled program, its arguments, and the MiB that it holds at most."""
    local = name == "local"
    cfg = EncoderConfig(
        vocab_size=1,
        width=heads * size,
        depth=1,
        num_heads=heads,
        mlp=1,
        attention="auto" if local else name,
        sliding_window_layers=(local,),
        window=WINDOW if local else 0,
        dropout=0.0,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )
    run = partial(_attended, cfg)
    if what == "gradient":
        run = jax.grad(lambda *a: _attended(cfg, *a).sum(), argnums=(0, 1, 2))
    shape = (rows, length, heads, size)
    keys = jax.random.split(jax.random.key(0), 3)
    vectors = [jax.random.normal(key, shape, cfg.compute_dtype) for key in keys]
    # The segment is an argument: a mask known to be all true would be compiled away.
    arguments = (*vectors, jnp.ones((rows, length), jnp.int32), jnp.bool_(True))
    compiled = jax.jit(run).lower(*arguments).compile()
    return compiled, arguments, compiled.memory_analysis().temp_size_in_bytes / 2**20


def _attended(
    cfg: EncoderConfig, q: Array, k: Array, v: Array, segment: Array, local: Array
) -> Array:
    attn = make_attention_inputs({}, segment_positions(segment), cfg)
    q = q * jnp.asarray(cfg.scale, q.dtype)
    is_local = local if cfg.sliding_window_layers else None
    return attend(cfg, (q,), (k,), v, attn, is_local=is_local)
