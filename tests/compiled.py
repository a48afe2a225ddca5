"""Compiled functions of the encoder: operation by operation, they take several times as
long, since each operation is compiled for itself."""

import jax

from research.models import encoder

init = jax.jit(encoder.init, static_argnames="cfg")
forward = jax.jit(encoder.forward, static_argnames=("cfg", "every_layer"))
encode = jax.jit(
    encoder.encode,
    static_argnames=(
        *("cfg", "pool", "max_segments", "every_layer"),
        *("before_final_norm", "clip_dims"),
    ),
)
apply = jax.jit(encoder.apply, static_argnames=("cfg", "per_layer_fn"))
