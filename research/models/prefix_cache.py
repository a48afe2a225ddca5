"""Keys and values of a prefix that all texts share, computed once."""

from functools import partial

import jax
import jax.numpy as jnp

from research.models.attention.inputs import PrefixKV, kinds, make_attention_inputs
from research.models.config import EncoderConfig
from research.models.layers import Block, Embedder
from research.models.positions.segment_positions import segment_positions
from research.types import Array, Params

# The extensions that turn and weigh a token by its place alone.
FIXED = (
    *("linear", "ntk_aware", "rebase", "ntk_by_parts", "yarn", "llama3"),
    *("proportional", "truncated_basis", "power_basis", "temp_scale", "log_position"),
)


@partial(jax.jit, static_argnames="cfg")
def encode_prefix(params: Params, ids: Array, cfg: EncoderConfig) -> PrefixKV:
    """What every block's attention sees of the first tokens of a text.

    Args:
        params: as `init` makes them.
        ids: [P] int32, special tokens included.
        cfg: the shape of an encoder that is `reading.shareable`.

    Returns:
        key and v, [L, P, KV, D/H].
    """
    ids = ids[None]
    where = segment_positions(jnp.ones_like(ids))
    around = make_attention_inputs(params, where, cfg, None)
    nothing = jnp.zeros((0, cfg.num_kv_heads, cfg.head_dim), cfg.compute_dtype)

    def layer(x, xs):
        p, kind = xs
        past = PrefixKV(nothing, nothing)
        x, own = Block(cfg).apply({"params": p}, x, around, kind, None, None, past)
        return x, jax.tree.map(lambda a: a[0], own)

    x = Embedder(cfg).apply({"params": params["embed"]}, ids, where, None)
    return jax.lax.scan(layer, x, (params["layers"], kinds(cfg)))[1]


def can_share_prefix(cfg: EncoderConfig) -> bool:
    """Whether the first tokens of a text are to each block what they are in any other.

    Not so where tokens see what follows, or what goes by the length of the text. Local
    blocks and biases by distance are left out too.
    """
    fixed = all(name in FIXED for name, _ in cfg.position_methods)
    alone = not (
        cfg.sliding_window_layers or cfg.anchor_token or cfg.position_stride > 1
    )
    return cfg.causal and fixed and alone and cfg.position_bias == "none"
