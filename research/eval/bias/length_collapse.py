"""Length collapse: embeddings of long documents crowd together.

Zhou et al. 2025, "Length-Induced Embedding Collapse in PLM-based Models".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.data.corpus import read_corpus
from research.eval.bias.documents import (
    Document,
    check_count,
    join_pieces,
    make_documents,
    make_word_tokenizer,
    truncate_document,
)
from research.eval.geometry.measures import mean_cosine, pair_cosines
from research.types import EmbedFn, Evaluator


def length_collapse(
    *,
    data: str,
    documents: int = 32,
    words: tuple[int, ...] = (16, 64, 256),
    seed: int = 0,
) -> Evaluator:
    """Mean cosines of pairs of documents by their length, as an evaluator.

    Args:
        data: Texts, as for a corpus.
        documents: Number of documents of each length.
        words: Lengths to compare, in words.
        seed: Seed of the choice of texts.

    Returns:
        embed -> {"cosine@16" ..., "collapse"}: the mean cosine at each length, and that
        at the longest one minus that at the shortest one.

    Raises:
        FileNotFoundError, ValueError: The texts are missing or too few.
    """
    check_count(range(documents), "documents")
    # Documents of the largest length, which are cut to the others.
    texts = list(dict.fromkeys(read_corpus(data)[1]))
    lengths = sorted(words)
    pool = make_documents(
        texts, make_word_tokenizer(), length=lengths[-1], count=documents, seed=seed
    )

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        embeds = {"": lambda texts, role: embed(texts, role)[:, None]}
        means = measure_length_collapse(embeds, pool, lengths)["models"][""]["mean"]
        cosines = {f"cosine@{n}": m for n, m in zip(lengths, means, strict=True)}
        return {**cosines, "collapse": means[-1] - means[0]}

    return evaluate


def measure_length_collapse(
    embeds: Mapping[str, EmbedFn], documents: Sequence[Document], lengths: Sequence[int]
) -> dict[str, Any]:
    """Cosines of pairs of documents that are cut to each of several lengths.

    The documents are the same at every length, so that only the length differs.

    Args:
        embeds: {label: embed function}. It returns [N, K, D] for K depths, the last of
            which is the model's output.
        documents: N documents, at least as long as the largest length.
        lengths: Numbers of tokens, special tokens excluded.

    Returns:
        A record of "lengths"; "documents", their number; "texts_per_document", the mean
        number of texts that a document of each length is joined from; and "models",
        which holds for each label the "mean", "p10" and "p90" (percentiles) of the
        cosines by length, and "layers", [K][lengths] means.

    Raises:
        ValueError: There are too few documents.
    """
    check_count(documents, "documents")
    cuts = [
        [truncate_document(document, length) for document in documents]
        for length in lengths
    ]
    # Statistics for every model and length.
    models = {}
    for label, embed in embeds.items():
        layers, percentiles = [], []
        for cut in cuts:
            # [N, K, D] vectors.
            x = embed([join_pieces(document) for document in cut], "document")
            layers.append([mean_cosine(x[:, k]) for k in range(x.shape[1])])
            percentiles.append(np.percentile(pair_cosines(x[:, -1]), (10, 90)))
        p10, p90 = np.array(percentiles).T.tolist()
        layers = np.array(layers).T.tolist()
        models[label] = {"mean": layers[-1], "p10": p10, "p90": p90, "layers": layers}
    joined = [float(np.mean([1 + d.source[-1] for d in cut])) for cut in cuts]
    return {
        "lengths": list(lengths),
        "documents": len(documents),
        "texts_per_document": joined,
        "models": models,
    }
