"""Attention kernels against dense attention in float32: values and gradients."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench.attention import attend_rows
from launch.bench.records import Recorder
from launch.bench.workloads import Setting
from research.models.config import EncoderConfig
from research.types import Array

COMPILERS = 8  # threads
# Largest relative error ||x - reference|| / ||reference|| by type.
LIMITS = {"bfloat16": 2e-2, "float32": 2e-3}
KERNELS = {"gpu": ("flash",), "tpu": ("splash",)}


class Case(NamedTuple):
    """Shape of the rows that kernels are checked on.

    Attributes:
        name: Name of the case.
        length: S, number of tokens of a row.
        packed: Whether rows hold several texts, or one text and padding.
        heads: H, number of query heads.
        kv_heads: KV, number of key heads.
        head_dim: E, number of channels per head.
        causal: Whether attention is causal.
        rows: B, number of rows.
        fields: Other fields of the encoder's config.
    """

    name: str
    length: int
    packed: bool
    heads: int = 12
    kv_heads: int = 12
    head_dim: int = 64
    causal: bool = False
    rows: int = 4
    fields: Mapping[str, Any] = {}


WINDOWS = {"sliding_window_layers": (True,), "window": 64}
ALIBI = {"position_bias": "alibi"}
CASES = (
    Case("windows, packed rows of 512", 512, True, fields=WINDOWS),
    Case("windows, packed rows of 1024", 1_024, True, fields=WINDOWS),
    Case("alibi, packed rows of 512", 512, True, fields=ALIBI),
    Case("alibi, one text a row, 1024", 1_024, False, rows=1, fields=ALIBI),
    Case("packed rows of 128", 128, True),
    Case("one text a row, 512", 512, False),
    Case("packed rows of 512", 512, True),
    Case("causal, 14 heads on 2, 256", 256, True, 14, 2, causal=True),
    Case("one text a row, causal, 384", 384, False, 8, 8, 128, causal=True),
    Case("one text a row, 2048", 2_048, False, rows=1),
)
TINY_CASES = (
    Case("packed rows of 64", 64, True, 2, 2, 16, rows=2),
    Case("one text a row, causal", 64, False, 2, 1, 16, causal=True, rows=2),
)


def check_kernels(setting: Setting, recorder: Recorder) -> None:
    """Compares every kernel that runs here with dense attention in float32."""
    kernels = KERNELS.get(jax.default_backend(), ())
    for case in TINY_CASES if setting.tiny else CASES:
        inputs = _draw_inputs(case)
        with jax.default_matmul_precision("highest"):
            reference = _compute(case, "plain", "float32", *inputs)
        names = [
            (name, "bfloat16")
            for name in (*kernels, "blockwise")
            if name != "splash" or "position_bias" not in case.fields
        ]
        if case.packed:
            names.append(("blockwise", "float32"))
        # Nothing is timed here, and most of the time is compilation
        with ThreadPoolExecutor(COMPILERS) as pool:
            for name, dtype in names:
                pool.submit(
                    recorder.attempt,
                    f"{name} {dtype}, {case.name}",
                    partial(_compare, case, name, dtype, inputs, reference),
                )


def _draw_inputs(case: Case) -> tuple[np.ndarray, ...]:
    """Random q, k, v, segment ids [B, S], and weights of the output, 0 at padding."""
    rng = np.random.default_rng(0)
    # Texts of 5 tokens or more, and at least one token of padding in a row
    segment_ids = np.zeros((case.rows, case.length), np.int32)
    for row in segment_ids:
        end = case.length - int(rng.integers(1, case.length // 4))
        cuts = [0, end]
        if case.packed:
            count = min(8, case.length // 16)
            cuts = [0, *sorted(rng.choice(np.arange(5, end - 5, 5), count, False)), end]
        for number, (low, high) in enumerate(zip(cuts, cuts[1:], strict=False), 1):
            row[low:high] = number
    shapes = [(case.heads, case.head_dim)] + 2 * [(case.kv_heads, case.head_dim)]
    arrays = [rng.normal(size=(*segment_ids.shape, *s)) for s in shapes]
    # All sides compute with the same values, which bfloat16 can hold
    arrays = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in arrays]
    weights = rng.normal(size=arrays[0].shape) * (segment_ids > 0)[..., None, None]
    return (*arrays, segment_ids, weights.astype(np.float32))


def _compute(
    case: Case, name: str, dtype: str, q, k, v, segment_ids, weights
) -> list[np.ndarray]:
    """The output at tokens of texts, and the gradients of q, k and v."""
    cfg = EncoderConfig(
        vocab_size=1,
        width=case.heads * case.head_dim,
        depth=1,
        num_heads=case.heads,
        num_kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        mlp=1,
        attention=name,
        causal=case.causal,
        dropout=0.0,
        dtype=dtype,
        **case.fields,
    )
    is_local = jnp.bool_(True) if cfg.sliding_window_layers else None

    def weighted_sum(q: Array, k: Array, v: Array, segment_ids: Array):
        y = attend_rows(cfg, q, k, v, segment_ids, is_local).astype(jnp.float32)
        return (y * weights).sum(), y * (weights != 0)

    run = jax.jit(jax.value_and_grad(weighted_sum, (0, 1, 2), has_aux=True))
    inputs = [jnp.asarray(x, dtype) for x in (q, k, v)]
    (_, y), grads = run(*inputs, jnp.asarray(segment_ids))
    return [np.asarray(x, np.float32) for x in (y, *grads)]


def _compare(
    case: Case, name: str, dtype: str, inputs: Sequence, reference: Sequence
) -> dict[str, Any]:
    """Relative errors of the output and the gradients."""
    results = _compute(case, name, dtype, *inputs)
    errors = {
        kind: float(np.linalg.norm(x - y) / np.linalg.norm(y))
        for kind, x, y in zip(
            ("output", "dq", "dk", "dv"), results, reference, strict=True
        )
    }
    # NaN is never below a limit
    equal = all(error < LIMITS[dtype] for error in errors.values())
    return {"attention": name, "dtype": dtype, "errors": errors, "equal": equal}
