"""What is read of an encoder: which layers, and which tokens take others' states."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.structs import Key, Params


def layer_places(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Which of the L+2 states that `encode` returns raw these layers are.

    The numbers are those of `hidden_states` in transformers: 0 is the embedding layer's
    output, k < L that of block k without the final norm, and L, or -1, that of the last
    block after it.

    Raises:
        ValueError: the encoder has no such layer.
    """
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"layer {layer} is not in {-depth - 1} ... {depth} of this encoder, "
                f"whose depth is {depth}"
            )
    places = (layer % (depth + 1) for layer in layers)
    return tuple(place + (place == depth) for place in places)


def prepend_blocks(window: tuple[int, int], depth: int) -> np.ndarray:
    """[L] bool: the blocks start <= l < exit of a window (start, exit).

    Raises:
        ValueError: the encoder has no such blocks.
    """
    start, end = window
    if not 0 <= start <= end <= depth:
        raise ValueError(
            f"token prepending before the blocks {start}:{end} needs 0 <= start <= "
            f"exit <= {depth}, the depth of this encoder"
        )
    block = np.arange(depth)
    return (start <= block) & (block < end)


def shareable(cfg: EncoderConfig) -> bool:
    """Whether the first tokens of a text are to each block what they are in any other.

    Not so where tokens see what follows, or what goes by the length of the text. Local
    blocks and biases by distance are left out too.
    """
    fixed = all(name in FIXED for name, _ in cfg.extensions)
    alone = not (cfg.local or cfg.anchor or cfg.stride > 1)
    return cfg.causal and fixed and alone and cfg.relative == "none"


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers of "-2" or "1;12".

    Raises:
        ValueError: the text is something else.
    """
    return _numbers(text, ";", "layers", "-2 or 1;12")


def parse_window(text: str) -> tuple[int, int]:
    """The window of blocks of "1:7".

    Raises:
        ValueError: the text is something else.
    """
    return _numbers(text, ":", "a window of blocks", "1:7", count=2)


def _numbers(
    text: str, between: str, what: str, form: str, count: int = 0
) -> tuple[int, ...]:
    parts = text.split(between)
    if not all(re.fullmatch(r"-?\d+", part) for part in parts) or (
        count and len(parts) != count
    ):
        raise ValueError(f"{text!r} is not {what}; write {form}")
    return tuple(map(int, parts))


def with_token(
    params: Params, cfg: EncoderConfig, key: Key
) -> tuple[Params, EncoderConfig]:
    """The encoder with one more token, whose id is the old `cfg.vocab`.

    Its row of the table is drawn from a normal distribution of variance 1, as that of
    <PST> in the code of Fu et al. 2024, and not of the variance of the table.
    """
    embed = params["embed"]
    table = jnp.asarray(embed["token"]["embedding"])
    row = jax.random.normal(key, (1, table.shape[1]), table.dtype)
    embed = {**embed, "token": {"embedding": jnp.concatenate([table, row])}}
    return {**params, "embed": embed}, dataclasses.replace(cfg, vocab=cfg.vocab + 1)


# The extensions that turn and weigh a token by its place alone.
FIXED = (
    *("linear", "ntk_aware", "rebase", "ntk_by_parts", "yarn", "llama3"),
    *("proportional", "truncated_basis", "power_basis", "temp_scale", "log_position"),
)
