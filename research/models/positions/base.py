"""Base class of position methods, which extend a model to longer texts.

A position method is a frozen dataclass whose fields are its arguments. It overrides the
hooks for what it changes: frequencies, angles, positions, query scale, parameters, and
the longest context. `methods.POSITION_METHODS` is the table of all methods.
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
    """Makes a dataclass field whose value must be at least `least`."""
    return dataclasses.field(default=default, metadata={"least": least})


@dataclass(frozen=True, kw_only=True)
class PositionMethod:
    """Base class of all position methods; by itself it changes nothing.

    If a field `original` (L0, the longest text in training, in tokens) is None,
    `resolve` sets it to the model's `max_len`.

    Attributes:
        name: Name in `POSITION_METHODS` and in call text: "yarn(scale=8)".
        requires: The `EncoderConfig.position` that it needs; "" for any.
        bounded: Whether texts longer than `max_context` are rejected.
        depends_on_length: Whether its RoPE frequencies or query factors depend on the
            length of the text.
        prefix_cacheable: Whether the keys and values of a prefix are the same in all
            texts.
        hf_type: Its rope_type in a config.json of `transformers`; "" for none.
        hf_fields: Maps its arguments to the parameters of that rope_type.
        hf_infers_scale: Whether a missing factor is max_position_embeddings / L0.
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
            # None stands for a default that `resolve` fills in
            if None not in (value, least) and not value >= least:
                raise ValueError(
                    f"{self.name}'s {field.name} is {value}; it must be at least "
                    f"{least}"
                )

    @property
    def prefix_cacheable(self) -> bool:
        return not self.depends_on_length

    def resolve(self, cfg: EncoderConfig) -> Self:
        """Sets `original` to the model's `max_len` if it is None."""
        if getattr(self, "original", 0) is None:
            return dataclasses.replace(self, original=cfg.max_len)
        return self

    def check(self, cfg: EncoderConfig) -> None:
        """Raises ValueError if the method does not fit the encoder."""

    def conflicts_with(self, method: "PositionMethod") -> bool:
        """Whether this method cannot be combined with another one."""
        return False

    def max_context(self, cfg: EncoderConfig) -> int:
        """Longest text, in tokens, that the method supports; 0 if it is unchanged."""
        return 0

    def init(self, key: Key, cfg: EncoderConfig) -> Params:
        """Initial parameters; the encoder's tree holds them under the method's name."""
        return {}

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        """Changes the RoPE frequencies `rope` for a text of `length` tokens."""
        return rope

    def learned_angles(
        self, params: Params, cfg: EncoderConfig, lengths: Array, key: Key | None
    ) -> Array | None:
        """Learned angles per token, [B, S, R/2]; None if the method learns none.

        Args:
            params: The method's trained parameters, initialized by `init`.
            cfg: The encoder's shape.
            lengths: [B, S] int32 number of tokens in the text of each token.
            key: PRNG key in training; None otherwise.
        """
        return None

    def training_angles(self, angles: Array, segment_ids: Array, key: Key) -> Array:
        """Changes the angles per token in training.

        Args:
            angles: [B|1, S|1, R/2].
            segment_ids: [B, S] int32 text of each token.
            key: PRNG key.
        """
        return angles

    def training_positions(self, position_ids: Array, key: Key) -> Array:
        """Changes the positions [B, S] int32 of the rotation in training."""
        return position_ids

    def query_scale(self, cfg: EncoderConfig, positions: Positions) -> Array | float:
        """Factor of the queries, [B, S] float32 or one number."""
        return 1.0

    @property
    def logit_scale(self) -> float:
        """The part of `query_scale` that also applies to bias and softcap."""
        return 1.0

    def require_above(self, field: str, lower_field: str) -> None:
        """Raises ValueError unless one argument is greater than another."""
        value, lower = getattr(self, field), getattr(self, lower_field)
        if not lower < value:
            raise ValueError(
                f"{self.name}'s {field} is {value}; it must be above {lower_field}, "
                f"{lower}"
            )

    @classmethod
    def from_hugging_face(cls, parameters: Mapping[str, Any], max_positions: int):
        """Makes the method from the `rope_parameters` of a config.json.

        Values that `transformers` infers are made explicit: L0, and the scale of some
        types.

        Raises:
            ValueError: A required parameter is missing.
        """
        arguments = {
            ours: tuple(value) if isinstance(value, list) else value
            for ours, theirs in cls.hf_fields.items()
            if (value := parameters.get(theirs)) is not None
        }
        # Values that `transformers` infers
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        if "original" in fields:
            arguments.setdefault("original", max_positions)
        if cls.hf_infers_scale:
            arguments.setdefault("scale", max_positions / arguments["original"])
        # Required arguments
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
        """The inverse of `from_hugging_face`; None if `transformers` has no type."""
        if not self.hf_type:
            return None
        # JSON has lists instead of tuples
        written: dict[str, Any] = {"rope_type": self.hf_type}
        for ours, theirs in self.hf_fields.items():
            value = getattr(self, ours)
            if value is not None:
                written[theirs] = list(value) if isinstance(value, tuple) else value
        return written

    def max_len_from_hugging_face(self, max_positions: int) -> int:
        """Longest text, in tokens, for a config.json's max_position_embeddings."""
        return max_positions

    def max_len_to_hugging_face(self, max_len: int) -> int:
        """The inverse of `max_len_from_hugging_face`."""
        return max_len


@dataclass(frozen=True, kw_only=True)
class Extrapolate(PositionMethod):
    """Allows texts of up to `length` tokens without any change of the model.

    For models without a largest position: ALiBi, relative biases, no positions. With
    RoPE, positions beyond the training context have angles unseen in training.

    Attributes:
        length: Longest text, in tokens.
    """

    name = "extrapolate"
    bounded = False
    length: int = make_bounded_field(1)

    def max_context(self, cfg: EncoderConfig) -> int:
        return self.length


# `hf_fields` of the rope_types that store L0 and the scale.
HF_SCALED = {"scale": "factor", "original": "original_max_position_embeddings"}
