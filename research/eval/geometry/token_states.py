"""Hidden states of the tokens of texts, at every depth of an encoder."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from research.inference.batching import TokenRows, choose_batch_sizes, pad_batches
from research.inference.forward import place_params, place_rows
from research.models.config import EncoderConfig
from research.models.encoder import forward
from research.text.chunk_rows import TokenizedText
from research.types import Array, Params, Tokens


def iterate_states(
    params: Params,
    cfg: EncoderConfig,
    token_ids: Sequence[np.ndarray],
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of a text, states [L+1, T, D] of its T tokens), longest text first.

    States are those of the embedding layer and after every block, each after the final
    norm if the family has one.

    Args:
        params: The encoder's parameters.
        cfg: The encoder's shape.
        token_ids: N arrays [T] of token ids, special tokens included.
        mesh: Mesh over whose batch axes texts are spread; None for the default device.
    """
    params = place_params(params, mesh)
    sizes = choose_batch_sizes(cfg.max_len, None, mesh)
    one_each = np.ones(len(token_ids), int)  # spans of a row
    # [R, S] rows of one text each
    for numbers, rows, _ in pad_batches(TokenRows(token_ids), one_each, sizes):
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            layers = _compute_states(
                params,
                place_rows(rows.token_ids, mesh),
                place_rows(rows.lengths, mesh),
                cfg=cfg,
            )
        layers = np.asarray(layers, np.float32)  # [L+1, R, S, D]
        for i, number in enumerate(numbers):
            yield int(number), layers[:, i, : len(token_ids[number])]


def sample_states(
    params: Params,
    cfg: EncoderConfig,
    token_ids: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The states of some tokens of each text: [L+1, M, D], in the order of the texts.

    Args:
        params, cfg, token_ids, mesh: As in `iterate_states`.
        positions: N arrays of the positions of these tokens in their text, M in all.
    """
    counts = np.array([len(row) for row in positions])
    chex.assert_equal(len(counts), len(token_ids))
    ends = np.cumsum(counts)
    states = np.empty((cfg.depth + 1, int(ends[-1]), cfg.width), np.float32)
    for number, layers in iterate_states(params, cfg, token_ids, mesh):
        tokens = layers[:, positions[number]]  # [L+1, m, D]
        states[:, ends[number] - counts[number] : ends[number]] = tokens
    return states


def inner_positions(texts: Sequence[TokenizedText]) -> list[np.ndarray]:
    """Positions of the tokens of each text, without special tokens and the prompt."""
    return [len(x.opening_ids) + np.arange(len(x.body_ids)) for x in texts]


def sample_positions(
    positions: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """At most `count` of the positions of all texts, drawn at random, in their order.

    Args:
        positions: N arrays of positions, each ascending.
        count: Largest number of positions of all texts together.
        rng: Random numbers.
    """
    ends = np.cumsum([len(row) for row in positions])
    order = np.sort(rng.permutation(ends[-1])[: max(0, count)])  # indices of all
    chosen_positions = np.concatenate(positions)[order]
    return np.split(chosen_positions, np.searchsorted(order, ends[:-1]))


@partial(jax.jit, static_argnames="cfg")
def _compute_states(
    params: Params, token_ids: Array, lengths: Array, *, cfg: EncoderConfig
) -> Array:
    """[L+1, R, S, D] states of rows of one text each."""
    is_token = jnp.arange(token_ids.shape[1])[None] < lengths[:, None]
    tokens = Tokens(token_ids, is_token.astype(jnp.int32), is_token)
    return forward(params, tokens, cfg, every_layer=True).layers
