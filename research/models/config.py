"""The shape of an encoder: one dataclass for every family."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is made of; hashable, so it can be a static argument of jit.

    Attributes:
        vocab: rows of the token table.
        width: D, the size of the hidden states.
        depth: L, the number of blocks.
        heads: H, the number of attention heads.
        mlp: the width inside the feed-forward layer.
        max_len: the longest text, in tokens; the rows of a learned position table.
        norm: 'layer' or 'rms'.
        norm_at: 'post' (after each residual sum, BERT) or 'pre' (before each sublayer,
            with a final norm).
        norm_eps: added to the variance.
        bias: whether the linear layers and layer norms have biases.
        act: 'gelu', 'gelu_tanh', 'silu' or 'relu'.
        gated: whether the feed-forward layer multiplies the activation by a second
            projection.
        position: 'learned' or 'rope'.
        rope_theta: the base of the rotary frequencies.
        type_vocab: rows of the token type table; 0 for none (the types are all 0).
        embed_norm: whether the sum of the embeddings is normalised.
        dropout: the rate after the embeddings, each sublayer and on attention weights.
        dtype: the type of activations and matrix products; parameters are float32.
        remat: what the backward pass recomputes of each block: 'none', 'dots' (all but
            the results of its projections; less memory and, limited by memory traffic,
            faster than none) or 'all'.
        attention: 'auto', 'plain' or 'fused' (`jax.nn.dot_product_attention`); auto is
            plain on CPU and fused elsewhere.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    mlp: int
    max_len: int = 512
    norm: str = "layer"
    norm_at: str = "post"
    norm_eps: float = 1e-12
    bias: bool = True
    act: str = "gelu"
    gated: bool = False
    position: str = "learned"
    rope_theta: float = 10_000.0
    type_vocab: int = 2
    embed_norm: bool = True
    dropout: float = 0.1
    dtype: str = "float32"
    remat: str = "dots"
    attention: str = "auto"

    def __post_init__(self):
        choices = {
            "norm": ("layer", "rms"),
            "norm_at": ("post", "pre"),
            "act": ("gelu", "gelu_tanh", "silu", "relu"),
            "position": ("learned", "rope"),
            "attention": ("auto", "plain", "fused"),
            "dtype": ("float32", "bfloat16"),
            "remat": ("none", "dots", "all"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"encoder.{field} is {getattr(self, field)!r}; "
                    f"allowed: {', '.join(allowed)}"
                )
        if self.width % self.heads:
            raise ValueError(
                f"encoder.width {self.width} does not divide by heads {self.heads}"
            )
        if self.position == "rope" and (self.width // self.heads) % 2:
            raise ValueError(
                f"rotary positions need an even head size, not "
                f"{self.width // self.heads}"
            )

    @property
    def head_dim(self) -> int:
        """The size of one attention head."""
        return self.width // self.heads

    @property
    def compute_dtype(self):
        """The JAX type of activations."""
        return jnp.dtype(self.dtype)

    def save(self, path: Path) -> None:
        """Writes the fields as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def bert(
    *,
    vocab: int = 30_522,
    width: int = 384,
    depth: int = 6,
    heads: int = 12,
    mlp: int = 1_536,
    max_len: int = 512,
    dropout: float = 0.1,
    dtype: str = "float32",
    remat: str = "dots",
) -> EncoderConfig:
    """BERT (Devlin et al. 2019): post-norm, learned positions, exact GELU."""
    return EncoderConfig(
        vocab=vocab,
        width=width,
        depth=depth,
        heads=heads,
        mlp=mlp,
        max_len=max_len,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
    )


def modern(
    *,
    vocab: int = 30_522,
    width: int = 384,
    depth: int = 6,
    heads: int = 12,
    mlp: int = 1_024,
    max_len: int = 512,
    rope_theta: float = 10_000.0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: str = "dots",
) -> EncoderConfig:
    """The pre-norm body of recent encoders: RMSNorm, RoPE, gated SiLU, no biases."""
    return EncoderConfig(
        vocab=vocab,
        width=width,
        depth=depth,
        heads=heads,
        mlp=mlp,
        max_len=max_len,
        norm="rms",
        norm_at="pre",
        norm_eps=1e-6,
        bias=False,
        act="silu",
        gated=True,
        position="rope",
        rope_theta=rope_theta,
        type_vocab=0,
        embed_norm=False,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
    )


ENCODERS = {"bert": bert, "modern": modern}
