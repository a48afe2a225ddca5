"""Codes of vectors in fewer bytes: int8, uint8, float8, bfloat16, float16, binary.

A quantizer is fitted once and then only encodes and decodes. Codes are arrays of plain
NumPy types [N, W], so that every format of files can hold them.
"""

import abc
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.transforms.linear import check_sample

# The fewest vectors from which the range of a dimension is known.
MIN_SAMPLE = 100
# {name: the type of a value, the type of the same bytes that files hold}
FLOATS = {
    "float16": (np.float16, np.float16),
    "bfloat16": (jnp.bfloat16, np.uint16),
    "e4m3": (jnp.float8_e4m3fn, np.uint8),
    "e5m2": (jnp.float8_e5m2, np.uint8),
}


class Quantizer(abc.ABC):
    """The interface of all quantizers.

    Attributes:
        width: D, the width of the vectors.
        rescore: Number of documents that a search finds by codes on both sides for each
            one that it returns, after the query's own values have ranked them; 0 if
            the query's own values rank all documents.
    """

    rescore: int = 0

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """D, the width of the vectors."""

    @abc.abstractmethod
    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, W] of vectors [N, D]."""

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The vectors [N, D] float32 that codes [N, W] stand for."""

    def center_queries(self, queries: np.ndarray) -> np.ndarray:
        """Queries [Q, D] as they are compared with decoded vectors."""
        return queries

    @property
    def bytes_per_vector(self) -> int:
        """Number of bytes of one vector's codes."""
        return self.encode(np.zeros((1, self.width), np.float32)).nbytes


@dataclass(frozen=True)
class ScalarQuantizer(Quantizer):
    """A byte for each value: 255 steps of equal size between a minimum and a maximum.

    The codes are those of sentence-transformers' `quantize_embeddings`. A code stands
    for the middle of its step, with which dot products have no bias.

    Attributes:
        ranges: [2, D] float32 minimum and maximum of each dimension.
        dtype: "int8" or "uint8".
        raw: Whether the codes of documents and queries are compared as the numbers that
            they are. Studies of compression do so, which gives all dimensions the same
            spread.
    """

    ranges: np.ndarray
    dtype: str
    raw: bool = False

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.ranges.shape[1]

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, D] of vectors; values out of range get the nearest code."""
        # In float32 and in this order, or codes differ from sentence-transformers'
        steps = (self.ranges[1] - self.ranges[0]) / 255
        steps = np.where(steps == 0, 1, steps)
        codes = np.floor((np.asarray(x, np.float32) - self.ranges[:1]) / steps)
        codes = np.clip(codes, 0, 255)
        return (codes - 128 * (self.dtype == "int8")).astype(self.dtype)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The middles [N, D] float32 of the codes' steps, or raw codes."""
        # The numbers of the codes themselves
        if self.raw:
            return np.asarray(codes, np.float32)
        steps = (self.ranges[1] - self.ranges[0]) / 255  # 0 if it is constant
        values = np.asarray(codes, np.float32) + 128 * (self.dtype == "int8")
        return (values + np.float32(0.5)) * steps + self.ranges[:1]

    def center_queries(self, queries: np.ndarray) -> np.ndarray:
        """Queries [Q, D] as they are, or their raw codes."""
        return self.decode(self.encode(queries)) if self.raw else queries


@dataclass(frozen=True)
class FloatQuantizer(Quantizer):
    """Floats of one or two bytes.

    Attributes:
        dim: D, the width of the vectors.
        format: A key of FLOATS.
        scale: Factor before the cast. A power of two moves the small values of a unit
            vector out of the coarse end of 8 bits, and is exact.
    """

    dim: int
    format: str
    scale: float = 1.0

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.dim

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, D]; values beyond the largest float get that one."""
        # A cast would make infinities of values beyond the largest one
        dtype, stored = FLOATS[self.format]
        largest = float(jnp.finfo(dtype).max)
        x = np.clip(np.asarray(x, np.float32) * self.scale, -largest, largest)
        return x.astype(dtype).view(stored)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The values [N, D] float32."""
        # The bytes of the codes, as floats again
        values = np.ascontiguousarray(codes).view(FLOATS[self.format][0])
        return values.astype(np.float32) / np.float32(self.scale)


@dataclass(frozen=True)
class BinaryQuantizer(Quantizer):
    """A bit for each value: whether it is above a threshold.

    The codes are the "ubinary" ones of sentence-transformers, and of faiss's binary
    indexes. A bit stands for -1 or 1. A search first takes the documents whose bits
    differ the least from the query's, then ranks them by the query's own values.

    Attributes:
        thresholds: [D] float32.
        rescore: Number of candidates for each document of the result; 0 ranks all
            documents by the query's values.
    """

    thresholds: np.ndarray
    rescore: int = 4

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return len(self.thresholds)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, ceil(D / 8)] uint8; the first value is the highest bit."""
        return np.packbits(np.asarray(x, np.float32) > self.thresholds[None], axis=-1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """-1 and 1, [N, D] float32."""
        # The last byte may have bits beyond the width
        bits = np.unpackbits(codes, axis=-1, count=self.width)
        return 2 * bits.astype(np.float32) - 1

    def center_queries(self, queries: np.ndarray) -> np.ndarray:
        """Queries [Q, D], from which the thresholds are subtracted."""
        return queries - self.thresholds[None]


@dataclass(frozen=True)
class PackedQuantizer(Quantizer):
    """2 or 4 bits for each value: steps of equal size between two limits.

    A code stands for the middle of its step. The first value of a byte has its lowest
    bits.

    Attributes:
        ranges: [2, D] float32 lower and upper limit of each dimension.
        bits: 2 or 4.
    """

    ranges: np.ndarray
    bits: int

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.ranges.shape[1]

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, ceil(D * bits / 8)] uint8; values out of range get the nearest."""
        low, steps = self._find_steps()
        codes = np.floor((np.asarray(x, np.float32) - low) / np.where(steps, steps, 1))
        codes = np.clip(codes, 0, 2**self.bits - 1).astype(np.uint8)
        # [N, bytes, values of a byte], whose bits do not overlap
        count = 8 // self.bits
        codes = np.pad(codes, ((0, 0), (0, -self.width % count)))
        codes = codes.reshape(len(codes), -1, count)
        return np.bitwise_or.reduce(codes << self._shifts, axis=-1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The middles [N, D] float32 of the codes' steps."""
        low, steps = self._find_steps()
        parts = codes[:, :, None] >> self._shifts & (2**self.bits - 1)
        values = parts.reshape(len(codes), -1)[:, : self.width].astype(np.float32)
        return (values + np.float32(0.5)) * steps + low

    def _find_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower limits and the steps, [1, D] float32."""
        low, high = self.ranges[:1], self.ranges[1:]
        return low, (high - low) / np.float32(2**self.bits)

    @property
    def _shifts(self) -> np.ndarray:
        return np.arange(0, 8, self.bits, dtype=np.uint8)


def fit_int4(
    vectors: np.ndarray, *, clip: float = 2.5, limit: float = 0.0
) -> PackedQuantizer:
    """4 bits for each value; `clip` percent of the values at either end are cut off.

    Args:
        vectors: [N, D] sample of vectors, as they are stored; N may be 0 with a limit.
        clip: As in `fit_int8`; what CoRECT takes.
        limit: The values are between -limit and limit, and nothing is fitted; 2 for
            codes of `bebr`.

    Raises:
        ValueError: As in `fit_int8`, or the limit is negative.
    """
    return _fit_packed("int4", vectors, 4, clip, limit)


def fit_int2(
    vectors: np.ndarray, *, clip: float = 2.5, limit: float = 0.0
) -> PackedQuantizer:
    """2 bits for each value, as `fit_int4`."""
    return _fit_packed("int2", vectors, 2, clip, limit)


def _fit_packed(
    name: str, vectors: np.ndarray, bits: int, clip: float, limit: float
) -> PackedQuantizer:
    if limit < 0:
        raise ValueError(f"{name}'s limit is {limit}; it should be positive, or 0")
    if not limit:
        return PackedQuantizer(_find_ranges(name, vectors, clip), bits)
    ranges = np.full((2, vectors.shape[1]), limit, np.float32)
    return PackedQuantizer(ranges * np.float32([[-1], [1]]), bits)


def fit_int8(
    vectors: np.ndarray, *, clip: float = 0.0, raw: bool = False
) -> ScalarQuantizer:
    """Signed bytes; `clip` percent of the values at either end are out of range.

    Args:
        vectors: [N, D] sample of vectors, as they are stored.
        clip: Percent, below 50; 0 takes the smallest and the largest value.
        raw: As in `ScalarQuantizer`.

    Raises:
        ValueError: There are fewer than MIN_SAMPLE vectors, or `clip` is no percent.
    """
    return ScalarQuantizer(_find_ranges("int8", vectors, clip), "int8", raw)


def fit_uint8(
    vectors: np.ndarray, *, clip: float = 0.0, raw: bool = False
) -> ScalarQuantizer:
    """Unsigned bytes, as `fit_int8`."""
    return ScalarQuantizer(_find_ranges("uint8", vectors, clip), "uint8", raw)


def make_float16(vectors: np.ndarray) -> FloatQuantizer:
    """Half precision, for vectors [N, D] of which only the width counts."""
    return FloatQuantizer(vectors.shape[1], "float16")


def make_bfloat16(vectors: np.ndarray) -> FloatQuantizer:
    """The upper half of float32, for vectors [N, D] of which only the width counts."""
    return FloatQuantizer(vectors.shape[1], "bfloat16")


def make_float8(
    vectors: np.ndarray, *, format: str = "e4m3", scale: float = 16.0
) -> FloatQuantizer:
    """Floats of 8 bits, for vectors [N, D] of which only the width counts.

    Args:
        vectors: [N, D] sample; N may be 0.
        format: "e4m3", or "e5m2" with more range and less precision.
        scale: Factor before the cast. The values of a unit vector are at most 1, where
            e4m3 reaches 448; 1 is what published studies use.

    Raises:
        ValueError: There is no such format.
    """
    check_option("float8's format", format, ("e4m3", "e5m2"))
    return FloatQuantizer(vectors.shape[1], format, float(scale))


def fit_binary(
    vectors: np.ndarray, *, threshold: str = "zero", rescore: int = 4
) -> BinaryQuantizer:
    """A bit for each value.

    Args:
        vectors: [N, D] sample; N may be 0 with the threshold "zero".
        threshold: "zero", or "median" for that of each dimension, which helps models
            whose vectors have a common direction.
        rescore: As in `BinaryQuantizer`.

    Raises:
        ValueError: There is no such threshold, or there are too few vectors for
            medians.
    """
    check_option("binary's threshold", threshold, ("zero", "median"))
    if threshold == "zero":
        return BinaryQuantizer(np.zeros(vectors.shape[1], np.float32), rescore)
    check_sample("binary with medians", vectors, MIN_SAMPLE)
    return BinaryQuantizer(np.median(vectors, axis=0).astype(np.float32), rescore)


def _find_ranges(name: str, vectors: np.ndarray, clip: float) -> np.ndarray:
    """[2, D] float32 smallest and largest values of a sample, without its ends."""
    if not 0 <= clip < 50:
        raise ValueError(f"{name}'s clip is {clip}; it should be a percent below 50")
    check_sample(name, vectors, MIN_SAMPLE)
    # Percentiles of each dimension alone: [2, D]
    x = np.asarray(vectors, np.float32)
    return np.percentile(x, (clip, 100 - clip), axis=0).astype(np.float32)
