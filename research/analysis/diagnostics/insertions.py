"""Insertions of tokens into sentences, and their effect on distances.

`sticky_tokens` is the diagnostic that uses them (Chen et al. 2025).
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn

COPIES = 8  # largest number of insertions of a token into a sentence
SPREAD = 0.8  # how far pairs reach from the smallest similarity to the reference
# Weights of the places of insertion: in the score, and in the check.
PLACES = {"prefix": (0.35, 4 / 11), "suffix": (0.35, 4 / 11), "insert": (0.3, 3 / 11)}
ROUNDING = 1e-6  # smaller changes of a distance are rounding


class SentencePair(NamedTuple):
    """Two sentences, of which the second one is edited."""

    first: str
    second: str


def sticky_scores(distances: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """The sticky score of each token and pair, higher for a steadier pull: [...].

    (sum of falls + 0.1 * their number + 0.1 * alone) / (sum of rises + 0.05 * their
    number + 0.01), of the changes of the distance from one insertion to the next.

    Args:
        distances: [..., 1 + COPIES] distances of the two sentences, the unedited pair
            first.
        alone: [...] distance of the token alone to the first sentence.
    """
    # [..., COPIES] from each number of copies to the next.
    changes = np.diff(np.asarray(distances, np.float64), axis=-1)
    falls, rises = np.maximum(-changes, 0), np.maximum(changes, 0)
    pull = falls.sum(-1) + 0.1 * (falls > ROUNDING).sum(-1) + 0.1 * alone
    return pull / (rises.sum(-1) + 0.05 * (rises > ROUNDING).sum(-1) + 0.01)


class InsertionTrial:
    """Insertions of tokens into the second sentences of some pairs.

    Args:
        embed: Embed function that returns [N, D].
        pairs: P pairs of sentences.
        seed: Seed of the places of insertion, which are the same for all tokens.
    """

    def __init__(self, embed: EmbedFn, pairs: Sequence[SentencePair], seed: int):
        self._embed, self._pairs, self._seed = embed, pairs, seed
        self._first = embed_sentences(embed, [pair.first for pair in pairs])  # [P, D]
        self._second = embed_sentences(embed, [pair.second for pair in pairs])

    def measure_cosine_distances(
        self, tokens: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The cosine distances of the pairs after 0 ... COPIES insertions.

        Args:
            tokens: T texts of tokens.

        Returns:
            [T, places, P, 1 + COPIES] distances, and [T, 1, P], those of the tokens
            alone to the first sentences.
        """
        x = self._embed_edits(tokens)  # [T, places, P, COPIES, D]
        edited = 1 - np.einsum("tmpcd,pd->tmpc", x, self._first)
        original = 1 - np.sum(self._first * self._second, -1)  # [P]
        original = np.broadcast_to(original[:, None], (*edited.shape[:3], 1))
        alone = 1 - embed_sentences(self._embed, tokens) @ self._first.T  # [T, P]
        return np.concatenate([original, edited], -1), alone[:, None]

    def measure_share(self, token: str) -> float:
        """The share of pairs and places at which insertions lower the mean distance.

        The largest share of three distances: cosine, Euclidean and Manhattan.
        """
        x = self._embed_edits([token])[0]  # [places, P, COPIES, D]
        weights = np.array([weight for _, weight in PLACES.values()])
        a, b = self._first, self._second
        shares = []
        for order in (None, 2, 1):
            if order is None:
                edited = 1 - np.einsum("mpcd,pd->mpc", x, a)
                original = 1 - np.sum(a * b, -1)
            else:
                edited = np.linalg.norm(x - a[:, None], ord=order, axis=-1)
                original = np.linalg.norm(a - b, ord=order, axis=-1)
            falls = edited.mean(-1) < original - ROUNDING  # [places, P]
            shares.append(float(weights @ falls.mean(-1)))
        return max(shares)

    def _embed_edits(self, tokens: Sequence[str]) -> np.ndarray:
        """[T, places, P, COPIES, D] vectors of the edited second sentences."""
        # All texts in one call, so that the embedder batches them by length.
        texts = [
            text
            for token in tokens
            for place in PLACES
            for number, pair in enumerate(self._pairs)
            for text in insert_copies(pair.second, token, place, self._seed + number)
        ]
        x = embed_sentences(self._embed, texts)
        shape = len(tokens), len(PLACES), len(self._pairs), COPIES, x.shape[-1]
        return x.reshape(shape)


def insert_copies(sentence: str, token: str, place: str, seed: int) -> list[str]:
    """The sentence with 1 ... COPIES copies of a token.

    Args:
        sentence: A sentence.
        token: Text of the token.
        place: One of PLACES: before or after the sentence without a space, or between
            random words.
        seed: Seed of the random words.
    """
    if place == "prefix":
        return [token * i + sentence for i in range(1, COPIES + 1)]
    if place == "suffix":
        return [sentence + token * i for i in range(1, COPIES + 1)]
    # Each copy goes between the words of the text before.
    rng, words, texts = np.random.default_rng(seed), sentence.split(), []
    for _ in range(COPIES):
        words.insert(int(rng.integers(len(words) + 1)), token)
        texts.append(" ".join(words))
    return texts


def spread_pairs(cosines: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """Pairs (i, j, cosine) that are spread evenly over the range of the cosines.

    For each of `count` equally spaced cosines, the nearest pair that is not used yet.

    Args:
        cosines: [N, N] cosines of N sentences; i < j is read.
        count: Number of pairs; all pairs if there are fewer.
    """
    first, second = np.triu_indices(len(cosines), 1)
    values = cosines[first, second]
    order = np.argsort(values, kind="stable")
    values = values[order]
    count = min(count, len(values))
    is_free = np.ones(len(values), bool)
    pairs = []
    for target in np.linspace(values[0], values[-1], count):
        # The nearest free pair below and above the target.
        place = int(np.searchsorted(values, target))
        low, high = place - 1, place
        while low >= 0 and not is_free[low]:
            low -= 1
        while high < len(values) and not is_free[high]:
            high += 1
        takes_low = high == len(values) or (
            low >= 0 and target - values[low] < values[high] - target
        )
        best = low if takes_low else high
        is_free[best] = False
        row = order[best]
        pairs.append((int(first[row]), int(second[row]), float(values[best])))
    return pairs


def select_pairs(
    pairs: Sequence[tuple[int, int, float]], reference: float, count: int
) -> list[tuple[int, int]]:
    """Pairs whose cosines spread evenly below a reference level; some may repeat.

    Args:
        pairs: Pairs (i, j, cosine).
        reference: Cosine that the pairs are below.
        count: Number of pairs.

    Raises:
        ValueError: All pairs are at the level or above.
    """
    # Only a pair below the level can be pulled up to it.
    below = [pair for pair in pairs if pair[2] < reference]
    if not below:
        raise ValueError(
            f"no two sentences have a cosine below {reference:.3f}, the mean cosine of "
            "the model's tokens: give more, and more different, sentences"
        )
    cosines = np.array([cosine for _, _, cosine in below])
    low = cosines.min()
    targets = np.linspace(low, low + SPREAD * (reference - low), count)
    nearest = np.abs(cosines[None] - targets[:, None]).argmin(1)
    return [below[i][:2] for i in nearest]


def embed_sentences(embed: EmbedFn, texts: Sequence[str]) -> np.ndarray:
    """Normalized vectors [N, D] float64 of sentences, which are queries as in STS."""
    vectors = np.asarray(embed(list(texts), "query"), np.float64)
    chex.assert_rank(vectors, 2)
    return l2_normalize_rows(vectors)
