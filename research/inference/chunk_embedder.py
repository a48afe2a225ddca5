"""Documents to the vectors of their chunks: late chunking and what it competes with."""

from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers
from jax.sharding import Mesh

from research.inference.batching import Runner, TokenRows, batch_sizes, row_vectors
from research.inference.embedder import make_embedder, make_runners, placed
from research.models.config import EncoderConfig
from research.models.encoder import truncate_depth
from research.models.pooling.basic import LearnedPooling
from research.models.pooling.projection import Dense, project
from research.models.pooling.registry import parse_pooling
from research.text.chunk_rows import ChunkedText
from research.text.chunking import Chunking, check_row_length, split_texts
from research.transforms.normalize import l2_normalize_rows
from research.types import ChunkEmbeddings, EmbedFn, Params


def make_chunk_embedder(
    params: Params,
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    *,
    chunk: Chunking,
    pool: str,
    max_length: int | None,
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    dense: Sequence[Dense] = (),
    depth: int | None = None,
    dim: int | None = None,
    batch_tokens: int | None = None,
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
) -> EmbedFn:
    """As `make_embedder`, but documents are cut into chunks.

    Other arguments are those of `make_embedder`.

    Args:
        chunk: how documents are cut. The vector of a late chunk is the mean of its
            token states, of a landmark chunk its last one, whatever `pool` is.
        pool: of queries, and of what naive and pcw read.
        max_length: longer texts are cut to this many tokens, and the encoder's reach
            cuts what is read in one row; None cuts there only.

    Returns:
        embed(texts, role): `Chunks` for the role "document" (an array for pcw), an
        array for all others.

    Raises:
        ValueError: also where the encoder does not reach a window, or its pooling has
            parameters that a chunk's would not go through.
    """
    check_row_length(chunk, cfg.max_len)
    if chunk.span_pooling and isinstance(parse_pooling(pool), LearnedPooling):
        raise ValueError(
            f"chunking {chunk.name} pools token states by itself, but the model's "
            f"pooling {pool} has parameters"
        )
    if depth is not None:
        params, cfg = truncate_depth(params, cfg, depth)
    params = placed(params, mesh)
    row = cfg.max_len if max_length is None else max_length
    if not chunk.reads_full_text:
        row = min(row, cfg.max_len)
    own = {"pool": pool, "max_length": row, "prompts": prompts, "normalize": normalize}
    spread = {"batch_tokens": batch_tokens, "mesh": mesh}
    last = {"dense": dense, "dim": dim, "adapters": adapters}
    uncut = make_embedder(params, cfg, tokenizer, **own, **last, **spread)
    # A window is a vector of its own, a piece of a chunk is not: its dense comes later.
    first, then = (dense, ()) if chunk.one_vector_per_text else ((), dense)
    read = chunk.span_pooling or pool
    runner = make_runners(params, cfg, read, mesh, first, adapters=adapters)
    cut = {
        "encoder_max_len": cfg.max_len,
        "max_length": row if chunk.reads_full_text else max_length,
        "prompt": (prompts or {}).get("document", ""),
    }

    def embed(texts: Sequence[str], role: str) -> np.ndarray | ChunkEmbeddings:
        if role != "document" or not len(texts):
            return uncut(texts, role)
        splits = split_texts(tokenizer, texts, chunk, **cut)
        vectors = chunk_vectors(runner("document"), splits, batch_sizes(cfg, **spread))
        vectors = np.asarray(project(then, vectors))[:, :dim]
        vectors = l2_normalize_rows(vectors) if normalize else vectors
        return vectors if chunk.one_vector_per_text else _chunks(vectors, splits)

    return embed


def chunk_vectors(
    run: Runner, splits: Sequence[ChunkedText], sizes: tuple[int, int, int]
) -> np.ndarray:
    """[C, D] float32, not normalised, of all chunks of the texts in order.

    A chunk that lies in several rows is the mean of its pieces by their tokens.
    """
    rows = [row for text in splits for row in text.rows]
    spans = [row.span_ids for row in rows]
    pieces = row_vectors(run, TokenRows([row.token_ids for row in rows], spans), sizes)
    tokens = np.concatenate([np.bincount(span)[1:] for span in spans])
    first = np.cumsum([0, *(len(text.start) for text in splits)])
    chunk = np.concatenate(
        [
            before + row.chunk_numbers
            for before, text in zip(first, splits, strict=False)
            for row in text.rows
        ]
    )
    starts = np.flatnonzero(np.diff(chunk, prepend=-1))
    weights = tokens.astype(np.float32)[:, None]
    total = np.add.reduceat(weights * pieces, starts)
    return total / np.add.reduceat(weights, starts)


def _chunks(vectors: np.ndarray, splits: Sequence[ChunkedText]) -> ChunkEmbeddings:
    counts = [len(text.start) for text in splits]
    return ChunkEmbeddings(
        vectors,
        np.repeat(np.arange(len(splits)), counts),
        np.concatenate([text.start for text in splits]),
        np.concatenate([text.end for text in splits]),
    )
