"""MUVERA: one vector per text whose dot products approximate MaxSim.

Jayaram et al. 2024, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings".
"""

from dataclasses import dataclass

import chex
import numpy as np

from research.types import MultiVectors

# Most distances of tokens and buckets in memory at a time.
BLOCK_SIZE = 1 << 24


@dataclass(frozen=True)
class FixedEncoding:
    """Fixed dimensional encodings of texts of several vectors.

    Each of R repetitions sorts vectors into 2^k buckets by the signs of k random
    products. A query has the sums of its vectors in every bucket, a document the means;
    both are concatenated. The dot product of a query and a document, divided by R, is
    at most MaxSim where buckets are filled and vectors are not projected.

    Attributes:
        planes: [R, D, k] normals of the planes.
        projections: [R, D, d] random signs that reduce the vectors of buckets; None
            for vectors as they are.
        fill: Whether an empty bucket of a document gets the vector whose signs differ
            least from the bucket's; otherwise it is zero.
        columns: [F] column of the final vector that each number is added to; None for
            vectors of all F numbers.
        signs: [F] random signs of the numbers that are added; None as well.
        dim: Width of the final vector; 0 for F.
    """

    planes: np.ndarray
    projections: np.ndarray | None = None
    fill: bool = True
    columns: np.ndarray | None = None
    signs: np.ndarray | None = None
    dim: int = 0

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.dim or self.full_width

    @property
    def full_width(self) -> int:
        """F, the width before the final projection."""
        repetitions, width, bits = self.planes.shape
        inner = width if self.projections is None else self.projections.shape[2]
        return repetitions * inner << bits

    def encode(self, texts: MultiVectors, *, is_query: bool) -> np.ndarray:
        """Vectors [N, F] or [N, dim] float32 of N texts; queries are divided by R."""
        chex.assert_shape(self.planes, (None, texts.vectors.shape[1], None))
        vectors = np.asarray(texts.vectors, np.float32)
        blocks = [
            self._encode_repetition(vectors, texts.offsets, number, is_query)
            for number in range(len(self.planes))
        ]
        x = np.concatenate(blocks, axis=1)  # [N, F]
        if is_query:
            x /= len(self.planes)
        if self.columns is None:
            return x
        # Count sketch: numbers with random signs are added in random columns
        sketch = np.zeros((self.dim, len(x)), np.float32)
        np.add.at(sketch, self.columns, (x * self.signs[None]).T)
        return sketch.T

    def _encode_repetition(self, vectors, offsets, number, is_query) -> np.ndarray:
        """[N, 2^k * d] of one repetition."""
        from scipy.sparse import csr_array

        planes = self.planes[number]
        count, buckets = len(offsets) - 1, 1 << planes.shape[1]
        # [C, k] signs, [C] buckets, [C] buckets of all texts
        bits = (vectors @ planes) > 0
        texts = np.repeat(np.arange(count), np.diff(offsets))
        places = texts * buckets + decode_gray(bits)
        if self.projections is not None:
            vectors = vectors @ self.projections[number]
        # [N * 2^k, d] sums, by a sparse product
        rows = np.arange(len(vectors))
        ones = np.ones(len(vectors), np.float32)
        shape = (count * buckets, len(vectors))
        sums = csr_array((ones, (places, rows)), shape) @ vectors
        if not is_query:
            sizes = np.bincount(places, minlength=count * buckets)
            sums /= np.maximum(sizes, 1)[:, None].astype(np.float32)
            if self.fill:
                empty = np.flatnonzero(sizes == 0)
                nearest = find_nearest(bits, offsets, empty, buckets)
                sums[empty] = vectors[nearest]
        return sums.reshape(count, -1)


def muvera(
    width: int,
    *,
    repetitions: int = 20,
    planes: int = 4,
    projection: int = 16,
    dim: int = 0,
    fill: bool = True,
    seed: int = 0,
) -> FixedEncoding:
    """Random fixed dimensional encodings of vectors of a width.

    Args:
        width: D, the width of the vectors.
        repetitions: R.
        planes: k, number of planes of a repetition.
        projection: Width of the vectors of buckets; 0 for D.
        dim: Width of the final vector; 0 for repetitions * 2^planes * projection.
        fill: As in `FixedEncoding`.
        seed: int of all random numbers.

    Raises:
        ValueError: A number is negative, or there is no repetition.
    """
    if repetitions < 1 or not 0 <= planes < 31 or projection < 0 or dim < 0:
        raise ValueError(
            f"muvera with {repetitions} repetitions of {planes} planes, projection "
            f"{projection} and dim {dim}: it needs a repetition, 0 ... 30 planes, and "
            "no negative number"
        )
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(repetitions, width, planes)).astype(np.float32)
    projections = None
    if projection:
        # One random sign per dimension, in a random column
        columns = rng.integers(0, projection, (repetitions, width, 1))
        signs = rng.choice([-1.0, 1.0], (repetitions, width, 1))
        one_hot = columns == np.arange(projection)
        projections = np.where(one_hot, signs, 0).astype(np.float32)
    encoding = FixedEncoding(normals, projections, fill)
    if not dim:
        return encoding
    full = encoding.full_width
    columns = rng.integers(0, dim, full)
    signs = rng.choice([-1.0, 1.0], full).astype(np.float32)
    return FixedEncoding(normals, projections, fill, columns, signs, dim)


def decode_gray(bits: np.ndarray) -> np.ndarray:
    """Numbers [N] whose Gray codes are the bits [N, k]: neighbors differ in one bit."""
    numbers = np.zeros(len(bits), np.int64)
    for bit in bits.T.astype(np.int64):
        numbers = 2 * numbers + (bit ^ (numbers & 1))
    return numbers


def find_nearest(
    bits: np.ndarray, offsets: np.ndarray, empty: np.ndarray, buckets: int
) -> np.ndarray:
    """The vectors that fill empty buckets: those whose signs differ least from theirs.

    Args:
        bits: [C, k] signs of the vectors of all texts.
        offsets: [N+1] as in `MultiVectors`.
        empty: [n] empty buckets, counted over all texts.
        buckets: 2^k.

    Returns:
        [n] index of a vector; of equal distances, the first of the text.
    """
    # [2^k, k] signs of the buckets, in the order of their numbers
    width = bits.shape[1]
    codes = (np.arange(buckets)[:, None] >> np.arange(width)[::-1] & 1).astype(bool)
    codes = codes[np.argsort(decode_gray(codes))]
    nearest = np.empty(len(empty), np.int64)
    step = max(1, BLOCK_SIZE // max(1, int(np.diff(offsets).max()) * width))
    for start in range(0, len(empty), step):
        texts, numbers = np.divmod(empty[start : start + step], buckets)
        # [n, T] distances to the vectors of the text, from its first one
        lengths = np.diff(offsets)[texts]
        rows = offsets[texts][:, None] + np.arange(lengths.max())[None]
        valid = np.arange(lengths.max())[None] < lengths[:, None]
        signs = bits[np.where(valid, rows, 0)]  # [n, T, k]
        distances = (signs != codes[numbers][:, None]).sum(-1)
        distances = np.where(valid, distances, width + 1)
        nearest[start : start + step] = offsets[texts] + distances.argmin(1)
    return nearest
