"""Product quantization: a byte for each part of a vector (Jegou et al. 2011)."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from research.transforms.linear import check_sample
from research.transforms.quantization import Quantizer

CENTROIDS = 256  # of each part, so that its code is a byte
MAX_SAMPLE = 65_536  # vectors that centroids are fitted to
# Number of distances in memory at a time.
_BATCH_VALUES = 1 << 24


@dataclass(frozen=True)
class ProductQuantizer(Quantizer):
    """The nearest of 256 centroids for each part of a vector.

    Attributes:
        centroids: [M, 256, D / M] float32, in faiss's layout.
        rotation: [D, D] float32 orthonormal matrix, by whose transpose vectors are
            multiplied first (OPQ, Ge et al. 2013); None for none.
    """

    centroids: np.ndarray
    rotation: np.ndarray | None = None

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return self.centroids.shape[0] * self.centroids.shape[2]

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, M] uint8."""
        x = np.asarray(x, np.float32)
        x = x if self.rotation is None else x @ self.rotation.T
        parts = len(self.centroids)
        x = x.reshape(len(x), parts, -1).swapaxes(0, 1)  # [M, N, D / M]
        squares = np.square(self.centroids).sum(-1)  # [M, 256]
        codes = np.empty((x.shape[1], parts), np.uint8)
        # The squared distance, without that of the vector, which is the same for all
        size = max(1, _BATCH_VALUES // squares.size)
        for start in range(0, len(codes), size):
            rows = slice(start, start + size)
            products = x[:, rows] @ self.centroids.swapaxes(1, 2)  # [M, n, 256]
            codes[rows] = (squares[:, None] - 2 * products).argmin(-1).T
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The centroids of the codes, rotated back: [N, D] float32."""
        parts = np.arange(len(self.centroids))
        x = self.centroids[parts, np.asarray(codes)]  # [N, M, D / M]
        x = x.reshape(len(x), -1)
        return x if self.rotation is None else x @ self.rotation


def fit_pq(
    vectors: np.ndarray, parts: int, *, rotate: bool = True, seed: int = 0
) -> ProductQuantizer:
    """Fits centroids, and a rotation that makes the parts alike, with faiss.

    Args:
        vectors: [N, D] sample of vectors, as they are stored; at most MAX_SAMPLE of
            them are used.
        parts: M, the number of parts and of bytes per vector.
        rotate: Whether a rotation is fitted, too (OPQ).
        seed: Seed of the sample and of the centroids.

    Raises:
        ValueError: M does not divide D, there are fewer than 256 vectors, or fewer than
            D for a rotation, or faiss is not installed.
    """
    width = vectors.shape[1]
    if not 1 <= parts <= width or width % parts:
        raise ValueError(
            f"pq of {parts} parts: the width {width} of the embedding is no multiple"
        )
    # With fewer vectors than dimensions, faiss's OPQ damages memory
    check_sample("pq", vectors, max(CENTROIDS, width) if rotate else CENTROIDS)
    faiss = import_faiss()
    x = np.ascontiguousarray(vectors, np.float32)
    if len(x) > MAX_SAMPLE:
        x = x[np.random.default_rng(seed).permutation(len(x))[:MAX_SAMPLE]]
    rotation = None
    if rotate:
        # A rotation that spreads the variance over the parts: [D, D]
        opq = faiss.OPQMatrix(width, parts)
        opq.train(x)
        rotation = faiss.vector_to_array(opq.A).reshape(width, width)
        x = x @ rotation.T
    # 2^8 centroids for each part
    pq = faiss.ProductQuantizer(width, parts, 8)
    pq.cp.seed = seed + 1
    pq.train(x)
    centroids = faiss.vector_to_array(pq.centroids)
    return ProductQuantizer(centroids.reshape(parts, CENTROIDS, -1), rotation)


def import_faiss() -> ModuleType:
    """The package faiss, which is not among the required ones.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError("this needs faiss: `pip install faiss-cpu`") from None
    return faiss
