"""Evaluators of a model's geometry, for its course in training and for commands.

Their scores are in the units of the measures, not in percent, and there is no main
score: no value of them is better than another.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jax.sharding import Mesh

from research.data.corpus import read_corpus
from research.data.document_cache import tokenizer_info
from research.data.files import read_sts
from research.eval.bias.documents import sample_texts
from research.eval.geometry.intrinsic_dimension import levina_bickel, two_nn
from research.eval.geometry.measures import (
    alignment,
    center_rows,
    effective_rank,
    isoscore,
    mean_cosine,
    partition_score,
    svd_anisotropy,
    uniformity,
)
from research.eval.geometry.token_states import (
    inner_positions,
    sample_positions,
    sample_states,
)
from research.inference.batching import TokenRows
from research.inference.tokenize import check_token_ids
from research.models.config import EncoderConfig
from research.text.chunk_rows import TokenizedText, tokenize_documents
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator, ModelEvaluator, Params

Measures = Mapping[str, Callable[[np.ndarray], float]]
# {name: measure of the unit vectors [N, D] of texts}
VECTOR_MEASURES: Measures = {
    "mean_cosine": mean_cosine,
    "svd_anisotropy": svd_anisotropy,
    "isoscore": isoscore,
    "partition_score": partition_score,
    "intrinsic_dimension": two_nn,
    "levina_bickel": levina_bickel,
    "effective_rank": lambda x: effective_rank(center_rows(x)),
    "representation_rank": lambda x: effective_rank(x, "eigenvalues"),
    "uniformity": uniformity,
}
# {name: measure of the states [M, D] of tokens, as they are}
TOKEN_MEASURES: Measures = {
    "mean_cosine": mean_cosine,
    "svd_anisotropy": svd_anisotropy,
    "intrinsic_dimension": two_nn,
    "effective_rank": lambda x: effective_rank(center_rows(x)),
}


def geometry(
    *,
    data: str,
    texts: int = 1_000,
    pairs: str = "",
    positive_score: float = 4.0,
    seed: int = 0,
) -> Evaluator:
    """Measures of the embeddings of texts: how evenly they fill their space.

    Args:
        data: Corpus, as `corpus.read_corpus` reads it.
        texts: Largest number of different texts.
        pairs: A file of scored pairs, as for `sts`, whose positive pairs give the
            alignment; "" for none.
        positive_score: Score above which a pair is positive; SimCSE takes 4 of 5.
        seed: int of the choice of texts.

    Returns:
        embed -> the VECTOR_MEASURES of the unit vectors and, with `pairs`, their
        "alignment".

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: There are too few texts, or no pair is positive.
    """
    # Files are read at once, so that a mistake is found before the training starts.
    sample = sample_corpus(data, texts, seed)
    first, second = [], []
    if pairs:
        rows = zip(*read_sts(pairs), strict=True)
        positives = [(a, b) for a, b, score in rows if score > positive_score]
        if not positives:
            raise ValueError(f"{pairs} has no pair with a score above {positive_score}")
        first, second = map(list, zip(*positives, strict=True))

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        scores = measure_vectors(np.asarray(embed(sample, "document")))
        if pairs:
            x, y = np.split(np.asarray(embed(first + second, "query")), 2)
            scores["alignment"] = alignment(x, y)
        return scores

    return evaluate


def token_geometry(
    *,
    data: str,
    texts: int = 200,
    tokens: int = 2_000,
    mask_share: float = 0.15,
    seed: int = 0,
) -> ModelEvaluator:
    """Measures of the states of tokens by depth, and of masked tokens at the last one.

    Special tokens around a text are left out. If the tokenizer has a mask, a share of
    the tokens is masked in a second pass, and as many of the others are compared with
    them (Meng et al. 2024, "Representation Deficiency in Masked Language Modeling").

    Args:
        data: Corpus, as `corpus.read_corpus` reads it.
        texts: Largest number of different texts.
        tokens: Largest number of tokens of all texts together.
        mask_share: Share of the tokens that are masked; 0 masks none.
        seed: int of the choices of texts, tokens and masks.

    Returns:
        An evaluator that returns the measures of the last depth of
        `measure_token_states`; and "by_depth", lists of them.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: There are too few texts.
    """
    sample = sample_corpus(data, texts, seed)

    def evaluate(
        params: Params,
        cfg: EncoderConfig,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        mesh: Mesh | None = None,
    ) -> Mapping[str, Any]:
        # Every token must have a row in the model's token table.
        tokenized = list(tokenize_documents(tokenizer, sample, "", max_length))
        rows = TokenRows([text.surround(text.body_ids) for text in tokenized])
        check_token_ids(rows, tokenizer, cfg.vocab_size, "text {}".format)
        by_depth = measure_token_states(
            (params, cfg, mesh),
            tokenizer,
            tokenized,
            tokens=tokens,
            mask_share=mask_share,
            seed=seed,
        )
        last = {name: values[-1] for name, values in by_depth.items()}
        return {**last, "by_depth": by_depth}

    return ModelEvaluator(evaluate)


def measure_token_states(
    model: tuple[Params, EncoderConfig, Mesh | None],
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[TokenizedText],
    *,
    tokens: int,
    mask_share: float,
    seed: int,
) -> dict[str, list[float]]:
    """Measures of the states of tokens by depth, from the embedding layer on.

    Args:
        model: The encoder's parameters and shape, and a mesh or None.
        tokenizer: Its tokenizer.
        texts: N texts; special tokens and the prompt are read, and not measured.
        tokens, mask_share, seed: As in `token_geometry`.

    Returns:
        Lists over depths: the TOKEN_MEASURES and, if tokens are masked,
        "real_effective_rank" and "mask_effective_rank" of equal numbers of tokens.
    """
    params, cfg, mesh = model
    rng = np.random.default_rng(seed)
    token_ids = [text.surround(text.body_ids) for text in texts]  # N arrays [T]
    inner = inner_positions(texts)
    positions = sample_positions(inner, tokens, rng)
    states = sample_states(params, cfg, token_ids, positions, mesh)  # [L+1, M, D]
    measures = {
        name: [measure(layer) for layer in states]
        for name, measure in TOKEN_MEASURES.items()
    }
    # A share of all tokens is masked; as many of each kind are compared.
    mask_id = tokenizer_info(tokenizer, []).mask_id
    num_masks = round(mask_share * sum(map(len, inner)))
    if mask_id is None or num_masks < 2:
        return measures
    masked = sample_positions(inner, num_masks, rng)
    rows = mask_tokens(token_ids, masked, mask_id)
    unmasked = [np.setdiff1d(*pair) for pair in zip(inner, masked, strict=True)]
    count = min(tokens, *(sum(map(len, part)) for part in (masked, unmasked)))
    if count < 2:  # no token is left without a mask
        return measures
    for name, part in (("real", unmasked), ("mask", masked)):
        part = sample_positions(part, count, rng)
        states = sample_states(params, cfg, rows, part, mesh)
        measures[f"{name}_effective_rank"] = [
            effective_rank(center_rows(layer)) for layer in states
        ]
    return measures


def measure_vectors(x: np.ndarray) -> dict[str, float]:
    """The VECTOR_MEASURES of vectors [N, D], which are scaled to length 1 first."""
    x = l2_normalize_rows(np.asarray(x, np.float64))
    return {name: measure(x) for name, measure in VECTOR_MEASURES.items()}


def sample_corpus(data: str, count: int, seed: int) -> list[str]:
    """At most `count` different texts of a corpus, drawn at random.

    Raises:
        FileNotFoundError, ValueError: The corpus cannot be read, or has too few texts.
    """
    # Equal texts have equal vectors, which would look like a collapse.
    texts = list(dict.fromkeys(read_corpus(data)[1]))
    try:
        return sample_texts(texts, count, seed)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from None


def mask_tokens(
    token_ids: Sequence[np.ndarray], positions: Sequence[np.ndarray], mask_id: int
) -> list[np.ndarray]:
    """The texts [T], with a mask at some positions of each."""
    rows = []
    for row, masked in zip(token_ids, positions, strict=True):
        row = row.copy()
        row[masked] = mask_id
        rows.append(row)
    return rows
