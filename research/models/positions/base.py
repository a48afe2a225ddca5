"""The record of a position method: what it changes, and how long texts may become.

A position method makes a model read longer texts than those of its training. It is one
frozen dataclass whose fields are its arguments; `methods.POSITION_METHODS` names them
all. What a class does not override stays as the model has it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from research.models.config import EncoderConfig
from research.models.positions.rope import Rope
from research.models.positions.segment_positions import Positions
from research.types import Array, Key, Params


def make_bounded_field(least: float, default: Any = dataclasses.MISSING) -> Any:
    """A field of a position method whose value must be at least `least`."""
    return dataclasses.field(default=default, metadata={"least": least})


@dataclass(frozen=True, kw_only=True)
class PositionMethod:
    """Base class of all position methods; by itself it changes nothing.

    A field `original` (L0, the longest text of the training in tokens) that is None is
    filled with the model's `max_len` by `resolve`.

    Attributes:
        name: Name in `POSITION_METHODS` and in call text: "yarn(scale=8)".
        requires: The `EncoderConfig.position` that it works on; "" for any.
        bounded: Whether texts beyond `max_context` are refused.
        depends_on_length: Whether its RoPE frequencies or query factors depend on the
            length of the text.
        prefix_cacheable: Whether a prefix's keys and values are the same in all texts.
        hf_type: Its rope_type in a config.json of `transformers`; "" for none.
        hf_fields: The parameter of that rope_type for each of its arguments.
        hf_infers_scale: Whether a missing factor is max_position_embeddings over L0.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[str] = ""
    bounded: ClassVar[bool] = True
    depends_on_length: ClassVar[bool] = False
    hf_type: ClassVar[str] = ""
    hf_fields: ClassVar[Mapping[str, str]] = {}
    hf_infers_scale: ClassVar[bool] = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), field.metadata.get("least")
            if None not in (value, least) and not value >= least:
                raise ValueError(
                    f"{self.name}'s {field.name} is {value}; it must be at least "
                    f"{least}"
                )

    @property
    def prefix_cacheable(self) -> bool:
        return not self.depends_on_length

    def resolve(self, cfg: EncoderConfig) -> Self:
        """The method with the model's `max_len` for an `original` that is None."""
        if getattr(self, "original", 0) is None:
            return dataclasses.replace(self, original=cfg.max_len)
        return self

    def check(self, cfg: EncoderConfig) -> None:
        """Raises ValueError if the method does not fit the encoder."""

    def conflicts_with(self, method: "PositionMethod") -> bool:
        """Whether the two cannot be combined."""
        return False

    def max_context(self, cfg: EncoderConfig) -> int:
        """Longest text in tokens that the method is for; 0 where it does not say."""
        return 0

    def init(self, key: Key, cfg: EncoderConfig) -> Params:
        """Parameters of the method, which the encoder keeps under its name."""
        return {}

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        """The RoPE frequencies for a text of `length` tokens, changed from `rope`."""
        return rope

    def learned_angles(
        self, params: Params, cfg: EncoderConfig, lengths: Array, key: Key | None
    ) -> Array | None:
        """Angles per token from parameters, [B, S, R/2]; None where none are learned.

        Args:
            params: What `init` returned, after training.
            cfg: The encoder's shape.
            lengths: [B, S] int32, number of tokens in the text of each token.
            key: Random key in training; None otherwise.
        """
        return None

    def training_angles(self, angles: Array, key: Key) -> Array:
        """Angles per token in training, [B|1, S|1, R/2], changed from `angles`."""
        return angles

    def training_positions(self, position_ids: Array, key: Key) -> Array:
        """Positions [B, S] int32 that training rotates by."""
        return position_ids

    def query_scale(self, cfg: EncoderConfig, positions: Positions) -> Array | float:
        """Factor of the queries, [B, S] float32 or one number."""
        return 1.0

    @property
    def logit_scale(self) -> float:
        """The part of `query_scale` that is for full logits, with their bias."""
        return 1.0

    def require_above(self, field: str, lower_field: str) -> None:
        """Raises ValueError unless one argument is above another one."""
        value, lower = getattr(self, field), getattr(self, lower_field)
        if not lower < value:
            raise ValueError(
                f"{self.name}'s {field} is {value}; it must be above {lower_field}, "
                f"{lower}"
            )

    @classmethod
    def from_hugging_face(cls, parameters: Mapping[str, Any], max_positions: int):
        """The method that `rope_parameters` of a config.json describe.

        What `transformers` fills in is made explicit: L0, and the scale of some types.

        Raises:
            ValueError: A needed parameter is missing.
        """
        arguments = {
            ours: tuple(value) if isinstance(value, list) else value
            for ours, theirs in cls.hf_fields.items()
            if (value := parameters.get(theirs)) is not None
        }
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        if "original" in fields:
            arguments.setdefault("original", max_positions)
        if cls.hf_infers_scale:
            arguments.setdefault("scale", max_positions / arguments["original"])
        missing = [
            cls.hf_fields[name]
            for name, default in fields.items()
            if default is dataclasses.MISSING and name not in arguments
        ]
        if missing:
            raise ValueError(
                f"rope_parameters of rope_type {cls.hf_type} lacks {', '.join(missing)}"
            )
        return cls(**arguments)

    def to_hugging_face(self) -> dict[str, Any] | None:
        """The inverse of `from_hugging_face`; None for what `transformers` lacks."""
        if not self.hf_type:
            return None
        written: dict[str, Any] = {"rope_type": self.hf_type}
        for ours, theirs in self.hf_fields.items():
            value = getattr(self, ours)
            if value is not None:
                written[theirs] = list(value) if isinstance(value, tuple) else value
        return written

    def max_len_from_hugging_face(self, max_positions: int) -> int:
        """Longest text in tokens of a config.json with this max_position_embeddings."""
        return max_positions

    def max_len_to_hugging_face(self, max_len: int) -> int:
        """The inverse of `max_len_from_hugging_face`."""
        return max_len


@dataclass(frozen=True, kw_only=True)
class Extrapolate(PositionMethod):
    """Texts up to `length` tokens without any change of the model.

    For models whose positions have no end: ALiBi, relative biases, none at all. Rotary
    positions beyond the training are angles that the model was not trained on.

    Attributes:
        length: Longest text in tokens.
    """

    name = "extrapolate"
    bounded = False
    length: int = make_bounded_field(1)

    def max_context(self, cfg: EncoderConfig) -> int:
        return self.length


# The arguments of the Hugging Face types that write L0 and the scale.
HF_SCALED = {"scale": "factor", "original": "original_max_position_embeddings"}
