"""Mining in a tokenized source: its documents are the candidates of its queries."""

from functools import partial

import numpy as np

from research.data.pairs.pair_cache import PairTable
from research.data.pairs.pair_rows import PairSourceState
from research.experiment.table_pairs import number_table
from research.inference.batching import TokenRows
from research.inference.embedder import Embedder, Embeddings
from research.inference.mining import Negatives, mine_negatives
from research.inference.mining_rules import MiningRules, fill_negatives
from research.inference.shares import split_over_processes
from research.inference.tokenize import TokenizedTexts


def mine_source(
    source: PairSourceState,
    embedder: Embedder,
    rules: MiningRules,
    similarity: str = "cosine",
    seed: int | str = 0,
) -> tuple[np.ndarray, Negatives]:
    """Mines the negatives of all examples of a source among its documents.

    Args:
        source: The source, with the tokens of its texts.
        embedder: Embedder of this process.
        rules: Which documents are negatives.
        similarity: As in `mine_negatives`.
        seed: Seed of random negatives.

    Returns:
        [n, N] int64 indices of texts of the source's table, and the negatives of its
        different queries.

    Raises:
        ValueError: There are too few documents.
    """
    table = source.table
    pairs = number_table(table)
    embed = partial(embed_table, embedder, table, name=source.name)
    negatives = mine_negatives(
        embed(pairs.queries, "query"),
        embed(pairs.documents, "document"),
        pairs.positives,
        rules,
        excluded=pairs.excluded,
        similarity=similarity,
        seed=seed,
    )
    texts = pairs.documents[negatives.passages]  # [Q, N]
    return texts[pairs.example_queries], negatives


def draw_documents(
    source: PairSourceState, count: int, seed: int | str = 0
) -> np.ndarray:
    """Random documents of a source for all examples, none of which belongs to one.

    Args:
        source: The source.
        count: N, number of documents per query.
        seed: Seed of the draws.

    Returns:
        [n, N] int64 indices of texts of the source's table.

    Raises:
        ValueError: There are too few documents.
    """
    pairs = number_table(source.table)
    places = np.full((len(pairs.queries), count), -1)  # [Q, N] to be filled
    known = np.concatenate([pairs.positives, pairs.excluded])
    passages = fill_negatives(places, known, len(pairs.documents), seed)
    return pairs.documents[passages][pairs.example_queries]


def embed_table(
    embedder: Embedder, table: PairTable, texts: np.ndarray, role: str, *, name: str
) -> Embeddings:
    """The embeddings of texts of a table, from the tokens that the run trains on.

    In a run of several processes, all call this, and all get all vectors.

    Args:
        embedder: Embedder of this process.
        table: The texts.
        texts: [N] indices of texts.
        role: "query" or "document".
        name: Name of the source, whose adapter is used if it has one.

    Returns:
        Embeddings of the kind of the embedder.
    """
    # An adapter of the source serves both roles
    role = name if name in embedder.model.adapters else role

    def encode(ranges, role, *, label):
        token_ids = [table.token_ids[r.start : r.stop].astype(np.int32) for r in ranges]
        spans = None
        if (mask := table.pooling_mask) is not None:
            spans = [mask[r.start : r.stop].astype(np.int32) for r in ranges]
        rows = TokenRows(token_ids, spans)
        return embedder.encode(TokenizedTexts(role, [rows], label))

    starts, stops = table.starts[texts].tolist(), table.starts[texts + 1].tolist()
    return split_over_processes(encode)(list(map(range, starts, stops)), role)
