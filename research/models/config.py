"""EncoderConfig: the architecture of an encoder of any model family, and presets."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from research.config_sections import check_type

# Groups of linear layers for `EncoderConfig.bias`.
LINEAR = ("qkv", "out", "up", "down")
CHOICES = {
    "norm": ("layer", "rms", "rms_plus_one"),
    "norm_at": ("post", "pre", "sandwich", "parallel"),
    "act": ("gelu", "gelu_tanh", "silu", "relu"),
    "position": ("learned", "rope", "none"),
    "position_bias": ("none", "alibi", "t5", "kerple_log", "kerple_power", "seqpe"),
    "attention": ("auto", "plain", "blockwise", "flash", "splash"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "all"),
}


@dataclass(frozen=True)
class EncoderConfig:
    """The architecture of an encoder; hashable, so it can be a static argument of jit.

    Attributes:
        vocab_size: Number of rows of the token table.
        width: D, the size of the hidden states.
        depth: L, the number of blocks.
        num_heads: H, the number of attention heads.
        mlp: F, the inner width of the feed-forward layer.
        max_len: Longest text in tokens; number of rows of a learned position table.
        num_kv_heads: Number of heads of keys and values, each shared by
            num_heads / num_kv_heads query heads; 0 becomes `num_heads`.
        head_dim: Size of one head; 0 becomes width / num_heads.
        norm: 'layer', 'rms', or 'rms_plus_one', which stores scale - 1 (Gemma).
        norm_at: 'post' (after each residual sum, BERT), 'pre' (before each sublayer,
            with a final norm), 'sandwich' (before and after it, Gemma 2) or 'parallel'
            (both sublayers read the block's input, GPT-NeoX).
        norm_eps: Epsilon added to the variance.
        norm_bias: Whether layer norms have biases.
        first_norm: Whether the first block normalizes the input of its attention;
            False in ModernBERT.
        bias: Groups of linear layers with biases, among LINEAR.
        act: Activation: 'gelu', 'gelu_tanh', 'silu' or 'relu'.
        gated: Whether the feed-forward layer multiplies the activation by a second
            projection.
        num_experts: Number of experts (gated feed-forward layers) per block; 0 for a
            single feed-forward layer.
        experts_per_token: Number of experts that each token is routed to.
        qk_norm: Whether queries and keys are normalized per head.
        position: Position encoding: 'learned', 'rope' or 'none'.
        position_offset: Number of rows of the position table before position 0.
        position_stride: Texts of at most max_len / position_stride tokens use every
            stride-th row of the position table, the original rows of an extended table.
        group_per_text: Whether longer texts use these rows as well, every one for as
            few neighboring positions as possible.
        random_offset: In training, a text begins at a random position in 0 ...
            random_offset, to train a table that is longer than the texts.
        position_bias: Attention bias by distance: 'none', 'alibi', 't5', 'kerple_log',
            'kerple_power' or 'seqpe'.
        rope_theta: Base of the rotary frequencies.
        rope_theta_local: Base of the rotary frequencies in sliding-window blocks; 0
            becomes `rope_theta`.
        rope_fraction: Fraction of a head's channels that are rotated.
        causal: Whether a token attends only to itself and earlier tokens.
        window: Number of tokens on each side that a sliding-window block attends to.
        sliding_window_layers: Whether each block has a sliding window; () for none.
        anchor_token: Whether all texts of a packed row attend to its first token, and
            positions continue from text to text (AnchorAttention).
        unattended_id: Id of a token that no token attends to, such as the [MASK] of
            ColBERT's longer queries; -1 for none.
        scale: Factor of the attention logits; 0 becomes head_dim^-0.5.
        attn_logit_softcap: Bound of the attention logits, applied by a tanh; 0 for none
            (Gemma 2).
        position_methods: Position methods (`positions.methods`) that extend the
            context, applied in order.
        type_vocab: Number of rows of the token type table; 0 for none. All tokens have
            type 0.
        embed_scale: Factor of the token embeddings.
        embed_norm: Whether the sum of the embeddings is normalized.
        dropout: Dropout rate after the embeddings and each sublayer.
        attention_dropout: Dropout rate of attention weights; None becomes `dropout`.
            In training, fused kernels need 0.
        dtype: Type of activations and matrix products; parameters are float32.
        remat: What the backward pass recomputes of each block: 'none', 'dots'
            (everything except the outputs of linear layers; this takes less memory
            and, where memory bandwidth is the limit, less time than 'none') or 'all'.
        unroll: Whether blocks are compiled one by one instead of as the body of a loop.
            On GPU the loop copies what is stored for the backward pass, which is
            avoided at the price of `depth` times the compilation.
        attention: 'auto', or an implementation of `attention.attend`: 'plain',
            'blockwise', 'flash' (GPU) or 'splash' (TPU).
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp: int
    max_len: int = 512
    num_kv_heads: int = 0
    head_dim: int = 0
    norm: str = "layer"
    norm_at: str = "post"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    first_norm: bool = True
    bias: tuple[str, ...] = LINEAR
    act: str = "gelu"
    gated: bool = False
    num_experts: int = 0
    experts_per_token: int = 2
    qk_norm: bool = False
    position: str = "learned"
    position_offset: int = 0
    position_stride: int = 1
    group_per_text: bool = False
    random_offset: int = 0
    position_bias: str = "none"
    rope_theta: float = 10_000.0
    rope_theta_local: float = 0.0
    rope_fraction: float = 1.0
    causal: bool = False
    window: int = 0
    sliding_window_layers: tuple[bool, ...] = ()
    anchor_token: bool = False
    unattended_id: int = -1
    scale: float = 0.0
    attn_logit_softcap: float = 0.0
    position_methods: tuple = ()
    type_vocab: int = 2
    embed_scale: float = 1.0
    embed_norm: bool = True
    dropout: float = 0.1
    attention_dropout: float | None = None
    dtype: str = "float32"
    remat: str = "dots"
    unroll: bool = False
    attention: str = "auto"

    def __post_init__(self):
        for field in ("bias", "sliding_window_layers", "position_methods"):
            # Lists from JSON become tuples, which are hashable.
            object.__setattr__(self, field, tuple(getattr(self, field)))
        # Values come from files of others, too
        for field in dataclasses.fields(self):
            check_type("encoder", field.name, getattr(self, field.name), field.type)
        self._check_choices()
        if not self.head_dim and self.width % self.num_heads:
            raise ValueError(
                f"encoder.width {self.width} does not divide by heads {self.num_heads}"
            )
        # Defaults that depend on other fields
        filled = {
            "num_kv_heads": self.num_kv_heads or self.num_heads,
            "head_dim": self.head_dim or self.width // self.num_heads,
            "rope_theta_local": self.rope_theta_local or self.rope_theta,
        }
        filled["scale"] = self.scale or filled["head_dim"] ** -0.5
        # Only one representation of "every block is global"
        if not any(self.sliding_window_layers):
            filled.update(sliding_window_layers=(), window=0)
        for field, value in filled.items():
            object.__setattr__(self, field, value)
        self._check_sizes()

    def _check_choices(self):
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"encoder.{field} is {getattr(self, field)!r}; "
                    f"allowed: {', '.join(allowed)}"
                )
        if unknown := sorted(set(self.bias) - set(LINEAR)):
            raise ValueError(
                f"encoder.bias names {', '.join(unknown)}; allowed: {', '.join(LINEAR)}"
            )

    def _check_sizes(self):
        # Heads and rotated channels
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"encoder.num_heads {self.num_heads} does not divide by num_kv_heads "
                f"{self.num_kv_heads}"
            )
        if self.position == "rope" and (self.rotary_dim % 2 or not self.rotary_dim):
            raise ValueError(
                f"rotary positions need an even head size, not {self.rotary_dim}"
            )
        # Sliding windows
        if self.sliding_window_layers and len(self.sliding_window_layers) != self.depth:
            raise ValueError(
                f"encoder.sliding_window_layers has {len(self.sliding_window_layers)} "
                f"entries for {self.depth} blocks"
            )
        if any(self.sliding_window_layers) and self.window < 1:
            raise ValueError(
                f"local blocks need a window of at least 1, not {self.window}"
            )
        # Mixture of experts, anchor token
        if self.num_experts and not (
            self.gated and 1 <= self.experts_per_token <= self.num_experts
        ):
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} and gated "
                f"{self.gated}; {self.num_experts} experts are gated, and a token goes "
                f"through 1 ... {self.num_experts} of them"
            )
        if self.anchor_token and not self.causal:
            raise ValueError("an anchor token needs causal attention")

    @property
    def rotary_dim(self) -> int:
        """R, the number of rotated channels of a head."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def attention_dropout_rate(self) -> float:
        """Dropout rate of attention weights."""
        return (
            self.dropout if self.attention_dropout is None else self.attention_dropout
        )

    @property
    def compute_dtype(self):
        """The data type of activations."""
        return jnp.dtype(self.dtype)


def _preset(
    doc: str, *, global_every: int, **overrides
) -> Callable[..., EncoderConfig]:
    """Makes a function of EncoderConfig's fields, with other defaults for some of them.

    Config sections are built from its signature. It has all fields except RUN_FIELDS,
    and `global_every`: with a `window`, every `global_every`-th block, starting with
    block 0, attends to the full text, and the others to `window` tokens on each side
    (ModernBERT, Warner et al. 2024); with 0 no block attends to the full text.
    """
    default_every = global_every

    def preset(*, global_every: int = default_every, **changes) -> EncoderConfig:
        fields = {**overrides, **changes}
        # A window without an explicit list: every `global_every`-th block is global
        if fields.get("window") and not fields.get("sliding_window_layers"):
            fields["sliding_window_layers"] = tuple(
                not global_every or layer % global_every > 0
                for layer in range(fields["depth"])
            )
        return EncoderConfig(**fields)

    # Its signature: every field, with the defaults of the preset
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=overrides.get(field.name, field.default),
            annotation=field.type,
        )
        for field in dataclasses.fields(EncoderConfig)
        if field.name not in RUN_FIELDS
    ]
    every_parameter = inspect.Parameter(
        "global_every",
        inspect.Parameter.KEYWORD_ONLY,
        default=global_every,
        annotation=int,
    )
    preset.__signature__ = inspect.Signature([*parameters, every_parameter])
    preset.__doc__ = doc
    return preset


# Fields that are set from a run's position methods and its prompt, not in its encoder
# section.
RUN_FIELDS = (
    "unattended_id",
    "position_methods",
    "position_stride",
    "group_per_text",
    "random_offset",
)
# The pre-norm body of recent models: RMSNorm, RoPE, gated SiLU, no biases.
PRE_NORM = {
    "norm": "rms",
    "norm_at": "pre",
    "norm_eps": 1e-6,
    "bias": (),
    "act": "silu",
    "gated": True,
    "position": "rope",
    "type_vocab": 0,
    "embed_norm": False,
    "dropout": 0.0,
}
SMALL = {"vocab_size": 30_522, "width": 384, "depth": 6, "num_heads": 12}
# Mistral-7B (Jiang et al. 2023).
MISTRAL_7B = {
    "vocab_size": 32_000,
    "width": 4_096,
    "depth": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "mlp": 14_336,
    "max_len": 32_768,
}
bert = _preset(
    "BERT (Devlin et al. 2019): post-norm, learned positions, exact GELU.",
    global_every=1,
    **SMALL,
    mlp=1_536,
)
modern = _preset(
    "The pre-norm body of recent encoders: RMSNorm, RoPE, gated SiLU, no biases.",
    global_every=1,
    **SMALL,
    **PRE_NORM,
    mlp=1_024,
)
decoder = _preset(
    "Decoder of Llama's kind; the default sizes are those of Mistral-7B.",
    global_every=0,
    **MISTRAL_7B,
    **PRE_NORM | {"norm_eps": 1e-5, "causal": True},
)
ENCODERS = {"bert": bert, "modern": modern, "decoder": decoder}
