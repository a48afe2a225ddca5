"""The compiled program of an embedder, from padded rows of tokens to pooled vectors."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.inference.batching import PaddedRows
from research.models import lora, prefix_cache
from research.models.attention.inputs import PrefixKV
from research.models.config import EncoderConfig
from research.models.encoder import encode
from research.models.pooling.projection import Dense, project
from research.models.pooling.registry import bind_pooling, parse_pooling
from research.models.token_prepending import Prepend
from research.sharding import batch_axes, shardings
from research.types import Array, Params, Tokens


@dataclasses.dataclass(frozen=True)
class RowEncoder:
    """An encoder on its devices, with a pooling, for batches of padded rows.

    Attributes:
        params: The encoder's parameters.
        cfg: The encoder's shape.
        pool: Pooling, as `parse_pooling` reads it.
        mesh: Mesh over whose batch axes rows are spread; None for the default device.
        dense: Linear layers after the pooling.
        blocks: [L] bool, True for blocks before which <PST> gets the state of the last
            token; None without token prepending.
        depths: K numbers of blocks, each of which gives a vector per span; None for a
            single vector after the last block.
        layers: Indices of the hidden states, before the final norm, whose pooled
            vectors are averaged; None for the last hidden state after the norm.
        can_share_prefix: Whether a common prefix of all rows can be computed once.
        clip_dims: Dimensions that are set to 0 in every state that is pooled.
        as_queries: Whether the texts are queries, as in `encoder.encode`.
    """

    params: Params
    cfg: EncoderConfig
    pool: str
    mesh: Mesh | None = None
    dense: tuple[Dense, ...] = ()
    blocks: Array | None = None
    depths: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    can_share_prefix: bool = False
    clip_dims: tuple[int, ...] = ()
    as_queries: bool = False

    def __call__(
        self, rows: PaddedRows, max_segments: int = 1, prefix: PrefixKV | None = None
    ) -> Array:
        """Vectors [R, M, D], or [R, M, K, D] with `depths`; M = max_segments.

        A pooling that keeps a vector per token gives one for each of S tokens instead
        of M texts. Returns at once, while the device still computes.
        """
        chex.assert_rank([rows.token_ids, rows.lengths], [2, 1])
        # Rows go to the default device, or are spread over the mesh.
        rows = jax.tree.map(partial(place_rows, mesh=self.mesh), rows)
        with self._ambient_mesh():
            return _encode_rows(
                *self._list_arrays(rows, prefix), **self._make_options(max_segments)
            )

    def trace(self, rows: PaddedRows, max_segments: int = 1) -> jax.stages.Traced:
        """Traces the program for rows and parameters that may be shapes."""
        with self._ambient_mesh():
            return _encode_rows.trace(
                *self._list_arrays(rows, None), **self._make_options(max_segments)
            )

    def encode_prefix(self, token_ids: np.ndarray) -> PrefixKV:
        """Keys and values of the prefix [P] that all rows share."""
        token_ids = place_params(token_ids, self.mesh)
        return prefix_cache.encode_prefix(self.params, token_ids, self.cfg)

    def _ambient_mesh(self):
        # Splash attention takes its sharding from the ambient mesh.
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _list_arrays(self, rows: PaddedRows, prefix: PrefixKV | None) -> tuple:
        return self.params, self.dense, self.blocks, rows, prefix

    def _make_options(self, max_segments: int) -> dict[str, Any]:
        return {
            "cfg": self.cfg,
            "pool": self.pool,
            "max_segments": max_segments,
            "depths": self.depths,
            "layers": self.layers,
            "clip_dims": self.clip_dims,
            "as_queries": self.as_queries,
        }


def make_row_encoders(
    params: Params,
    cfg: EncoderConfig,
    pool: str,
    *,
    mesh: Mesh | None = None,
    num_adapters: int = 0,
    dense: Sequence[Dense] = (),
    blocks: np.ndarray | None = None,
    depths: tuple[int, ...] | None = None,
    layers: tuple[int, ...] | None = None,
    clip_dims: tuple[int, ...] = (),
) -> list[RowEncoder]:
    """Makes a row encoder for each adapter; a single one without adapters.

    All of them have parameters of the same shapes and share one compiled program.

    Args:
        params: The encoder's parameters, with `num_adapters` adapters.
        num_adapters: Number of adapters in the parameters.
        cfg, pool, mesh, dense, blocks, depths, layers, clip_dims: As in `RowEncoder`.

    Raises:
        ValueError: There is no such pooling, or the model lacks its parameters.
    """
    # Raises an error if the pooling does not fit the parameters.
    bind_pooling(parse_pooling(pool), params, cfg)
    params, dense, blocks = place_params((params, tuple(dense), blocks), mesh)
    # One set of parameters per adapter.
    every_params = [params]
    if num_adapters:
        every_params = [lora.select_adapter(params, i) for i in range(num_adapters)]
    shares = prefix_cache.can_share_prefix(cfg)
    return [
        RowEncoder(p, cfg, pool, mesh, dense, blocks, depths, layers, shares, clip_dims)
        for p in every_params
    ]


def place_params(params: Params, mesh: Mesh | None) -> Params:
    """Parameters on the default device, or split over the mesh's 'model' axis.

    Each group of 'model' devices holds a full copy.
    """
    if mesh is None:
        return jax.device_put(params)  # jnp.asarray would compile a copy of each shape

    def place(x, sharding):
        # Parameters that are already sharded over the mesh stay as they are.
        if isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat):
            return x
        return jax.device_put(x, sharding)

    return jax.tree.map(place, params, shardings(params, mesh))


def place_rows(rows: np.ndarray, mesh: Mesh | None) -> Array:
    """An array [R, ...] on the default device, or split over the mesh's batch axes."""
    return jax.device_put(rows, mesh and NamedSharding(mesh, P(batch_axes(mesh))))


@partial(
    jax.jit,
    static_argnames=(
        *("cfg", "pool", "max_segments", "depths", "layers", "clip_dims"),
        "as_queries",
    ),
)
def _encode_rows(
    params: Params,
    dense: tuple[Dense, ...],
    blocks: Array | None,
    rows: PaddedRows,
    prefix: PrefixKV | None,
    *,
    cfg: EncoderConfig,
    pool: str,
    max_segments: int,
    depths: tuple[int, ...] | None,
    layers: tuple[int, ...] | None,
    clip_dims: tuple[int, ...],
    as_queries: bool,
) -> Array:
    """The compiled program of `RowEncoder`, with its shapes."""
    # [R, S] tokens, one text per row.
    is_token = jnp.arange(rows.token_ids.shape[1])[None] < rows.lengths[:, None]
    tokens = Tokens(rows.token_ids, is_token.astype(jnp.int32), is_token)
    prepend = None
    if blocks is not None:
        prepend = Prepend(rows.pst_positions, rows.lengths - 1, blocks)
    # [R*M, D] vectors, or [R*M, L+1 or L+2, D] of every layer.
    x = encode(
        params,
        tokens,
        cfg,
        parse_pooling(pool),
        max_segments=max_segments,
        span_ids=rows.span_ids,
        every_layer=depths is not None or layers is not None,
        before_final_norm=layers is not None,
        clip_dims=clip_dims,
        prepend=prepend,
        prefix=prefix,
        as_queries=as_queries,
    )
    if depths is not None:
        x = x[:, np.asarray(depths)]  # [R*M, K, D]
    if layers is not None:
        x = x[:, np.asarray(layers)].mean(1)  # [R*M, D]
    x = project(dense, x)
    return x.reshape(len(rows.token_ids), -1, *x.shape[1:])
