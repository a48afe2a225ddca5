"""Rows of a contrastive batch: its texts, dealt to devices and packed into rows."""

from math import ceil, gcd
from typing import NamedTuple

import numpy as np

from research.data.packing import Packing, pack_bins, split_evenly, token_offsets
from research.data.pairs.pair_cache import PairTable
from research.data.pairs.refreshed_negatives import RefreshedNegatives
from research.data.pairs.text_vectors import VectorLookup
from research.types import Tokens, max_segments

TRIAL_BATCHES = 8  # batches that are packed to find how many rows a source needs
# Pairs that are packed together: more take longer to pack, fewer leave gaps.
MIN_BIN_PAIRS, MAX_BIN_PAIRS = 64, 256


class PairSourceState(NamedTuple):
    """A tokenized source and the shapes of its batches.

    Attributes:
        name: Name of the source in the config.
        table: Tokens of the source's texts.
        weight: Share of the steps, relative to the other sources.
        docs_per_query: K, number of documents per query: the positive and the hard
            negatives.
        length: S, number of tokens in a row.
        rows: Number of rows of each bin in a usual batch.
        row_increment: Bins that need more rows grow by multiples of this number.
        loss: Call text of the source's loss; "" for that of the config.
        clusters: [n] number of each example's cluster, from which a batch is drawn;
            None draws from all examples.
        query_vectors: A teacher's vectors of the queries; None for none.
        document_vectors: A teacher's vectors of the documents; None for none.
        teacher: The same texts in the tokens of a teacher that embeds them within the
            step; None without one.
        refreshed: Files of the hard negatives that the run mines; None for those of the
            data.
        has_walk: Whether an order of the examples is a walk, which has their negatives,
            too.
    """

    name: str
    table: PairTable
    weight: float
    docs_per_query: int
    length: int
    rows: int
    row_increment: int
    loss: str = ""
    clusters: np.ndarray | None = None
    query_vectors: VectorLookup | None = None
    document_vectors: VectorLookup | None = None
    teacher: "PairSourceState | None" = None
    refreshed: RefreshedNegatives | None = None
    has_walk: bool = False


class BatchPlan(NamedTuple):
    """The contents of a batch over all processes, for the model or for a teacher.

    Attributes:
        source: Source of all examples of the batch.
        examples: [B] indices of the examples, bin by bin.
        texts: [B, 1+K] indices of each query and its documents in the source's table.
        packing: Row of the batch and position of each of these B*(1+K) texts.
        rows: R, number of rows in the batch.
    """

    source: PairSourceState
    examples: np.ndarray
    texts: np.ndarray
    packing: Packing
    rows: int


def count_device_bins(pairs: int) -> int:
    """Number of bins in which a device's pairs are packed; it divides their number.

    Few enough pairs for fast packing, and enough for rows without gaps.
    """
    for bins in range(1, pairs // MIN_BIN_PAIRS + 1):
        if pairs % bins == 0 and pairs // bins <= MAX_BIN_PAIRS:
            return bins
    return 1


def draw_texts(
    table: PairTable,
    examples: np.ndarray,
    docs_per_query: int,
    rng: np.random.Generator,
    negatives: np.ndarray | None = None,
) -> np.ndarray:
    """Draws [B, 1+K] texts: each query, one of its positives, K-1 of its negatives.

    Args:
        table: Texts of the source.
        examples: [B] indices of the examples.
        docs_per_query: K.
        rng: Source of the random numbers.
        negatives: [B, K-1] mined negatives, instead of those of the table.
    """
    query = table.query_text[examples]  # [B]
    num_positives = table.num_positives[examples]  # [B]
    positive = query + 1 + (rng.random(len(examples)) * num_positives).astype(np.int64)
    columns = [query[:, None], positive[:, None]]
    if negatives is not None:
        columns.append(negatives.astype(np.int64))
    elif docs_per_query > 1:
        # Negatives: shuffle those of each example, and take the first K-1.
        counts = table.num_negatives[examples]  # [B]
        begins = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(examples)), counts)  # [all negatives]
        shuffled = np.lexsort((rng.random(len(owner)), owner))
        picks = shuffled[begins[:, None] + np.arange(docs_per_query - 1)[None]]
        columns.append(picks + (query + 1 + num_positives - begins)[:, None])
    return np.concatenate(columns, axis=1)


def draw_source_texts(
    source: PairSourceState,
    examples: np.ndarray,
    step: int,
    rng: np.random.Generator,
    *,
    negatives: np.ndarray | None = None,
    is_trial: bool = False,
) -> np.ndarray:
    """Draws [B, 1+K] texts of a source, as `draw_texts`, with the negatives of a step.

    Args:
        source: The source.
        examples: [B] indices of the examples.
        step: The step.
        rng: Source of the random numbers.
        negatives: [B, K-1] negatives that are known already; None draws them.
        is_trial: Whether random documents stand for the negatives that a run mines.
    """
    table, refreshed = source.table, source.refreshed
    if refreshed is not None and (is_trial or refreshed.folder is None):
        documents = find_documents(table)
        negatives = rng.choice(documents, (len(examples), refreshed.count))
    elif refreshed is not None:
        negatives = refreshed.read(step, len(table.query_text))[examples]
    return draw_texts(table, examples, source.docs_per_query, rng, negatives)


def find_documents(table: PairTable) -> np.ndarray:
    """Indices of the texts of a source that are no queries: [D]."""
    is_document = np.ones(len(table.starts) - 1, bool)
    is_document[table.query_text] = False
    return np.flatnonzero(is_document)


def text_lengths(table: PairTable, texts: np.ndarray) -> np.ndarray:
    """Number of tokens of each text, in the shape of `texts`."""
    return table.starts[texts + 1] - table.starts[texts]


def pack_texts(
    source: PairSourceState, texts: np.ndarray, bins: int
) -> tuple[np.ndarray, Packing]:
    """Deals pairs to G bins, and packs the texts [B, 1+K] of each bin.

    Returns:
        The order [B] of the pairs, bin by bin, and the packing [G, T] of their texts.
    """
    lengths = text_lengths(source.table, texts)  # [B, 1+K]
    order = split_evenly(lengths.sum(axis=1), bins)  # [G, B / G]
    bin_lengths = lengths[order].reshape(bins, -1)  # [G, T]
    packing = pack_bins(bin_lengths, source.length, max_segments(source.length))
    return order.reshape(-1), packing


def place_bins(source: PairSourceState, packing: Packing) -> Packing:
    """The rows of a batch from those of its bins.

    A batch that does not fit the usual rows grows in large steps, so that few shapes
    are compiled.

    Args:
        source: The source, with rows.
        packing: Packing [G, T] of the texts of each bin.

    Returns:
        The packing [G*T] of all texts of the batch.
    """
    excess = max(0, packing.rows - source.rows)
    rows = source.rows + source.row_increment * ceil(excess / source.row_increment)
    bins = len(packing.row)
    first_rows = rows * np.arange(bins)[:, None]
    return Packing(
        (packing.row + first_rows).reshape(-1),
        packing.segment_ids.reshape(-1),
        packing.start.reshape(-1),
        rows * bins,
    )


def plan_teacher(plan: BatchPlan, bins: int) -> BatchPlan:
    """The same pairs of a batch in rows of the teacher's tokens, device by device.

    Args:
        plan: The contents of the batch, whose pairs are in order of the bins.
        bins: Number of bins.
    """
    teacher = plan.source.teacher
    lengths = text_lengths(teacher.table, plan.texts).reshape(bins, -1)
    packing = pack_bins(lengths, teacher.length, max_segments(teacher.length))
    flat = place_bins(teacher, packing)
    return BatchPlan(teacher, plan.examples, plan.texts, flat, flat.rows)


def index_vectors(plan: BatchPlan) -> np.ndarray:
    """[B, 1+K] int32 index of each text's vector, of the R * max_segments(S) ones."""
    packing, texts_per_row = plan.packing, max_segments(plan.source.length)
    vectors = packing.row * texts_per_row + packing.segment_ids - 1
    return vectors.reshape(plan.texts.shape).astype(np.int32)


def set_rows(
    source: PairSourceState, batch_size: int, devices: int, min_chunks: int
) -> PairSourceState:
    """Sets the number of rows of a bin in a usual batch, so that few shapes compile.

    The number is half a standard deviation above the mean of some random batches. Two
    batches out of three fit; the others have an eighth more rows, a second shape to
    compile. This gives less padding than one shape in which all batches fit.

    Args:
        source: The source, without rows.
        batch_size: B, number of queries in a batch over all devices.
        devices: Number of devices that share a batch.
        min_chunks: Smallest number of chunks into which a device's rows are divided.
    """
    device_bins = count_device_bins(batch_size // devices)
    bins = devices * device_bins
    # Rows of the fullest bin of each trial batch.
    rng = np.random.default_rng(0)
    used = []
    for _ in range(TRIAL_BATCHES):
        size = len(source.table.query_text)
        examples = rng.choice(size, batch_size, replace=False)
        texts = draw_source_texts(source, examples, 0, rng, is_trial=True)
        used.append(pack_texts(source, texts, bins)[1].rows)
    usual = np.mean(used) + np.std(used) / 2

    # A bin's rows are a multiple that makes the device's rows divide into chunks
    def find_multiple(chunks):
        return chunks // gcd(chunks, device_bins)

    def pad_usual(multiple):
        return multiple * ceil(usual / multiple)

    candidates = map(find_multiple, range(min_chunks, min_chunks * 5 // 4 + 1))
    multiple = min(candidates, key=pad_usual)
    rows = pad_usual(multiple)
    increment = multiple * max(1, rows // 8 // multiple)
    return source._replace(rows=rows, row_increment=increment)


def fill_rows(
    plan: BatchPlan, low: int, high: int, adapters: tuple[int, int] | None
) -> Tokens:
    """The tokens [high - low, S] of the batch's rows low to high.

    Args:
        plan: The contents of the batch.
        low: First row.
        high: Row after the last one.
        adapters: Indices of the adapters for queries and documents; None for a single
            adapter.
    """
    table, packing, length = plan.source.table, plan.packing, plan.source.length
    # The M texts of these rows, and the position in its text of each of their T tokens.
    placed = np.flatnonzero((packing.row >= low) & (packing.row < high))  # [M]
    texts = plan.texts.reshape(-1)[placed]
    lengths = text_lengths(table, texts)
    offsets = token_offsets(lengths)  # [T]
    begin = (packing.row[placed] - low) * length + packing.start[placed]  # [M]
    target = np.repeat(begin, lengths) + offsets  # [T] in the batch
    origin = np.repeat(table.starts[texts], lengths) + offsets  # [T] in the table
    # Copy the tokens from the table; all other positions are padding, with segment 0.
    shape = (high - low, length)
    token_ids = np.zeros((high - low) * length, np.int32)
    segment_ids = np.zeros_like(token_ids)
    token_ids[target] = table.token_ids[origin]
    segment_ids[target] = np.repeat(packing.segment_ids[placed], lengths)
    pooling_mask = segment_ids > 0
    if table.pooling_mask is not None:
        pooling_mask[target] = table.pooling_mask[origin]
    # An adapter per token; -1 for padding.
    adapter_ids = None
    if adapters is not None:
        is_query = placed % plan.texts.shape[1] == 0  # texts are [B, 1+K], flat
        adapter_ids = np.full(segment_ids.size, -1, np.int32)
        adapter_ids[target] = np.repeat(np.where(is_query, *adapters), lengths)
        adapter_ids = adapter_ids.reshape(shape)
    arrays = (token_ids, segment_ids, pooling_mask)
    return Tokens(*(array.reshape(shape) for array in arrays), adapter_ids)
