"""Shapes of the encoder's parameters, from its config alone.

A model that is loaded needs the shapes that `encoder.init` would make, but not the
trace of its layers.
"""

from functools import partial

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.bias import init_positions
from research.types import Params


def abstract_params(
    cfg: EncoderConfig, *, lm_head: bool = False, mlm_head: bool = False
) -> Params:
    """The tree of `encoder.init`, with a float32 ShapeDtypeStruct for each parameter.

    Args:
        cfg: The encoder's shape.
        lm_head: Whether there is an output layer, as from `heads.init_lm_head`.
        mlm_head: Whether there is a "head", as from `heads.init_mlm_head`.
    """
    # Biases and position methods have parameters of their own; most models have none.
    tree = {}
    if cfg.position_bias != "none" or cfg.position_methods:
        key = jax.eval_shape(lambda: jax.random.key(0))
        tree = dict(jax.eval_shape(partial(init_positions, cfg=cfg), key))
    shapes = _list_shapes(cfg, lm_head)
    if mlm_head:
        shapes |= _mlm_head_shapes(cfg)
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def _list_shapes(cfg: EncoderConfig, lm_head: bool) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all parameters but those of biases and position methods."""
    width, shapes = cfg.width, {}
    # Tables [rows, D]
    tables = {
        "token": cfg.vocab_size,
        "type": cfg.type_vocab,
        "position": (cfg.position == "learned") * (cfg.max_len + cfg.position_offset),
    }
    for name, rows in tables.items():
        if rows:
            shapes[f"embed/{name}/embedding"] = (rows, width)
    if cfg.embed_norm:
        shapes |= _norm_shapes("embed/norm", cfg, width)
    # One block; parameters of all blocks are stacked: [L, ...]
    block = _block_shapes(cfg)
    shapes |= {f"layers/{path}": (cfg.depth, *shape) for path, shape in block.items()}
    if cfg.norm_at != "post":
        shapes |= _norm_shapes("final_norm", cfg, width)
    if lm_head:
        shapes["lm_head/kernel"] = (cfg.vocab_size, width)
    return shapes


def _mlm_head_shapes(cfg: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters of a head of masked language modeling."""
    return {
        "head/transform/kernel": (cfg.width, cfg.width),
        "head/transform/bias": (cfg.width,),
        **_norm_shapes("head/norm", cfg, cfg.width),
        "head/bias": (cfg.vocab_size,),
    }


def _block_shapes(cfg: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters of one block."""
    width, heads, kv_heads = cfg.width, cfg.num_heads, cfg.num_kv_heads
    head, experts, shapes = cfg.head_dim, cfg.num_experts, {}
    # Norms of hidden states [D], and of the queries and keys of a head [E]
    names = ["attention_norm", "mlp_norm"]
    if cfg.norm_at == "sandwich":
        names += ["attention_post_norm", "mlp_post_norm"]
    for name in names:
        shapes |= _norm_shapes(name, cfg, width)
    for name in ("query_norm", "key_norm") if cfg.qk_norm else ():
        shapes |= _norm_shapes(name, cfg, head)
    # Linear layers: {name: (inputs, outputs, group of biases)}
    linear = {
        "query": ((width,), (heads, head), "qkv"),
        "key": ((width,), (kv_heads, head), "qkv"),
        "value": ((width,), (kv_heads, head), "qkv"),
        "out": ((heads, head), (width,), "out"),
    }
    into, out = ((width,), (cfg.mlp,), "up"), ((cfg.mlp,), (width,), "down")
    if experts:
        shapes["router/kernel"] = (width, experts)
        for name, (start, end, _) in (("gate", into), ("up", into), ("down", out)):
            shapes[f"experts/{name}/kernel"] = (experts, *start, *end)
    else:
        linear |= {"up": into, "down": out} | ({"gate": into} if cfg.gated else {})
    for name, (start, end, group) in linear.items():
        shapes[f"{name}/kernel"] = (*start, *end)
        if group in cfg.bias:
            shapes[f"{name}/bias"] = end
    return shapes


def _norm_shapes(path: str, cfg: EncoderConfig, size: int) -> dict[str, tuple[int]]:
    shapes = {f"{path}/scale": (size,)}
    if cfg.norm == "layer" and cfg.norm_bias:
        shapes[f"{path}/bias"] = (size,)
    return shapes
