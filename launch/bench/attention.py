"""Benchmark of attention: time and memory of every implementation, by row length."""

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

# Tokens per batch: shorter rows come in larger batches, as in the embedder.
TOKENS = 1_024
# Maximum row lengths of 'plain', whose logits would take 12 GiB at 16,384 tokens.
PLAIN = {"forward": 8_192, "gradient": 4_096}
# Seconds after which an implementation is not run again.
PATIENCE = 60.0
WINDOW = 64
KERNELS = {"gpu": ("flash",), "tpu": ("splash",)}


class AttentionShape(NamedTuple):
    """Shape of the measured queries: R rows, S tokens, H heads, E channels."""

    rows: int
    length: int
    heads: int
    head_dim: int


class Measurement(NamedTuple):
    """One implementation at one length.

    Attributes:
        attention: The implementation; 'local' is 'auto' in a sliding-window block.
        direction: 'forward' or 'gradient' (with respect to queries, keys and values).
        length: Number of tokens per row.
        rows: Number of rows in the batch.
        seconds: Median over the rounds.
        mebibytes: Peak memory of the compiled program, without its arguments.
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
    """Measures every implementation that runs on this machine.

    Args:
        lengths: Numbers of tokens per row.
        heads: H, number of heads.
        head_dim: E, number of channels per head.
        rounds: Number of runs of each implementation; slow ones are run fewer times.
    """
    # Fused kernels exist on accelerators only.
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
    """Times the implementations in alternation."""
    programs = {name: _compile_attention(name, direction, shape) for name in names}
    seconds = {name: [] for name in names}
    for turn in range(rounds + 1):  # the first one warms up
        for name, (run, arguments, _) in programs.items():
            if sum(seconds[name]) > PATIENCE:
                continue
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            elapsed = time.perf_counter() - start
            # A first run that takes very long is the only one, and counts.
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
    """(compiled program, its arguments, its peak memory in MiB)."""
    # A single block; 'local' has a sliding window.
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
    run = partial(attend_rows, cfg)
    if direction == "gradient":
        run = jax.grad(lambda *a: attend_rows(cfg, *a).sum(), argnums=(0, 1, 2))
    # Random queries, keys and values: [R, S, H, E].
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, cfg.compute_dtype) for key in keys]
    # Segments are an argument: XLA would remove a mask that is known to be all true.
    segment_ids = jnp.ones((shape.rows, shape.length), jnp.int32)
    arguments = (*qkv, segment_ids, jnp.bool_(True))
    compiled = jax.jit(run).lower(*arguments).compile()
    return compiled, arguments, compiled.memory_analysis().temp_size_in_bytes / 2**20


def attend_rows(
    cfg: EncoderConfig,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array,
    is_local: Array,
) -> Array:
    """Self-attention of rows that hold one text each: [R, S, H, E]."""
    attn = make_attention_inputs({}, segment_positions(segment_ids), cfg)
    q = q * jnp.asarray(cfg.scale, q.dtype)
    block_is_local = is_local if cfg.sliding_window_layers else None
    return attend(cfg, (q,), (k,), v, attn, is_local=block_is_local)
