"""Benchmark of attention by row length: seconds and memory of every implementation."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from launch import main as cli
from research.models.attention.attend import attend
from research.models.attention.inputs import make_attention_inputs
from research.models.config import EncoderConfig
from research.models.positions.segment_positions import segment_positions
from research.types import Array

# Tokens of a batch: shorter rows come in larger batches, as the embedder makes them.
TOKENS = 1_024
# Longest rows of 'plain': at 16,384 tokens its logits take 12 GiB.
PLAIN = {"forward": 8_192, "gradient": 4_096}
# Seconds after which no further turn of an implementation begins.
PATIENCE = 60.0
WINDOW = 64
KERNELS = {"gpu": ("flash",), "tpu": ("splash",)}


class AttentionShape(NamedTuple):
    """Size of a measurement: R rows of S tokens, H heads of E channels."""

    rows: int
    length: int
    heads: int
    head_dim: int


class Measurement(NamedTuple):
    """One implementation at one length.

    Attributes:
        attention: The implementation; 'local' is 'auto' in a sliding-window block.
        direction: 'forward' or 'gradient', with respect to queries, keys and values.
        length: Tokens of a row.
        rows: Rows of the batch.
        seconds: Median of the turns.
        mebibytes: Peak memory of the compiled program, its arguments excluded.
    """

    attention: str
    direction: str
    length: int
    rows: int
    seconds: float
    mebibytes: float


def measure_attention(
    lengths: Sequence[int], heads: int, head_dim: int, rounds: int
) -> list[Measurement]:
    """Measures every implementation that this machine has.

    Args:
        lengths: Tokens of a row.
        heads: H, number of heads.
        head_dim: E, channels of a head.
        rounds: Turns of each; fewer of what takes long.
    """
    kernels = KERNELS.get(jax.default_backend(), ())
    names = ("plain", "blockwise", *kernels, "auto", "local")
    measurements = []
    for direction in ("forward", "gradient"):
        for length in lengths:
            shape = AttentionShape(max(1, TOKENS // length), length, heads, head_dim)
            usable = [n for n in names if n != "plain" or length <= PLAIN[direction]]
            for row in _time_implementations(usable, direction, shape, rounds):
                cli.log(
                    f"{row.direction:8} {row.length:6} tokens {row.attention:9} "
                    f"{1e3 * row.seconds:10.1f} ms {row.mebibytes:9.1f} MiB"
                )
                measurements.append(row)
    return measurements


def _time_implementations(
    names: Sequence[str], direction: str, shape: AttentionShape, rounds: int
) -> list[Measurement]:
    """Times the implementations, which take turns."""
    programs = {name: _compile_attention(name, direction, shape) for name in names}
    seconds = {name: [] for name in names}
    for turn in range(rounds + 1):  # the first one warms up
        for name, (run, arguments, _) in programs.items():
            if sum(seconds[name]) > PATIENCE:
                continue
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            elapsed = time.perf_counter() - start
            if turn or elapsed > PATIENCE:
                seconds[name].append(elapsed)
    return [
        Measurement(
            attention=name,
            direction=direction,
            length=shape.length,
            rows=shape.rows,
            seconds=statistics.median(seconds[name]),
            mebibytes=mebibytes,
        )
        for name, (_, _, mebibytes) in programs.items()
    ]


def _compile_attention(
    name: str, direction: str, shape: AttentionShape
) -> tuple[Callable, tuple[Array, ...], float]:
    """(compiled program, its arguments, MiB that it holds at most)."""
    local = name == "local"
    cfg = EncoderConfig(
        vocab_size=1,
        width=shape.heads * shape.head_dim,
        depth=1,
        num_heads=shape.heads,
        mlp=1,
        attention="auto" if local else name,
        sliding_window_layers=(local,),
        window=WINDOW if local else 0,
        dropout=0.0,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )
    run = partial(_attend_rows, cfg)
    if direction == "gradient":
        run = jax.grad(lambda *a: _attend_rows(cfg, *a).sum(), argnums=(0, 1, 2))
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, cfg.compute_dtype) for key in keys]
    # The segments are an argument: a mask known to be all true would be compiled away.
    segment_ids = jnp.ones((shape.rows, shape.length), jnp.int32)
    arguments = (*qkv, segment_ids, jnp.bool_(True))
    compiled = jax.jit(run).lower(*arguments).compile()
    return compiled, arguments, compiled.memory_analysis().temp_size_in_bytes / 2**20


def _attend_rows(
    cfg: EncoderConfig,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array,
    is_local: Array,
) -> Array:
    """Attention [R, S, H, E] of rows of one text to themselves."""
    attn = make_attention_inputs({}, segment_positions(segment_ids), cfg)
    q = q * jnp.asarray(cfg.scale, q.dtype)
    block_is_local = is_local if cfg.sliding_window_layers else None
    return attend(cfg, (q,), (k,), v, attn, is_local=block_is_local)
