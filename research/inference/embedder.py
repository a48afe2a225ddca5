"""`Embedder`: turns texts into embeddings as an `EmbeddingModel` describes."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from research.inference.batching import TokenRows, choose_batch_sizes, encode_rows
from research.inference.chunk_embedder import (
    average_pieces,
    make_chunk_embeddings,
    make_chunk_rows,
)
from research.inference.embed_kinds import check_finite, encode_sparse, group_tokens
from research.inference.forward import RowEncoder, make_row_encoders
from research.inference.model import EmbeddingModel
from research.inference.multi_vectors import to_multi_vectors
from research.inference.settings import (
    apply_prompt,
    check_clip_dims,
    check_kind,
    check_quantizer,
    choose_lengths,
    describe_model,
    truncate_to_depths,
)
from research.inference.similarity import get_width
from research.inference.token_transforms import has_one_vector, parse_token_transform
from research.inference.tokenize import (
    TokenizedTexts,
    check_token_ids,
    has_pst,
    make_plain_tokenize,
    make_template_tokenize,
)
from research.models.encoder import hidden_state_indices, truncate_depth
from research.models.pooling.basic import ONE_VECTOR_KINDS, LearnedPooling
from research.models.pooling.projection import project
from research.models.pooling.registry import has_query_pooling, parse_pooling
from research.models.token_prepending import add_token, prepend_blocks
from research.text.chunking import Chunking, check_row_length, split_texts
from research.text.templates import Prompt
from research.text.tokenization import enclosing_tokens
from research.text.tokens import PST
from research.transforms.normalize import l2_normalize_rows
from research.transforms.pipeline import VectorTransform

# The output of an embedder: dense vectors [N, D], `MultiVectors` of tokens or chunks,
# or a SciPy CSR array [N, V].
Embeddings = Any


class Embedder:
    """An embedding model as a callable: `embedder(texts, role)` returns embeddings.

    Args:
        model: The model. The other arguments override its settings.
        depth: Number of blocks; None for all.
        dim: Number of leading values that are kept, before vectors are normalized.
        pool: Pooling, as `parse_pooling` reads it; None for the prompt's pooling or, if
            it has none, the model's.
        prompt: Templates for the texts, instead of the model's prompts; the vectors of
            several templates are averaged. A prompt without templates (`options.PLAIN`)
            only puts the model's `prompts` before the texts.
        layers: Hidden states whose pooled vectors are averaged, numbered as in
            `hidden_state_indices`.
        prepend: Blocks [start, exit) of token prepending, before each of which <PST>
            gets the state of the last token (Fu et al. 2024). With start = exit, or
            with None and a prompt with <PST>, no state is copied.
        bidirectional: Whether attention is bidirectional; None for the model's own.
        max_length: Maximum number of tokens, special tokens included; longer texts are
            cut. None for the model's own maximum; chunked documents that are encoded in
            several rows are then not cut.
        normalize: Whether vectors are scaled to length 1; None for the model's own.
        chunk: How documents are cut into chunks; None embeds them as one text. The
            vector of a late chunk is always the mean of its token states, that of a
            landmark chunk the state of its last token, whatever `pool` is.
        transform: Transform of the vectors [N, dim], whose linear maps are applied
            before they are normalized; None for the model's own. Its quantizer is not
            applied: `store_vectors` does that.
        token_transform: What is done to the vectors of tokens, as
            `parse_token_transform` reads it; "" for nothing.
        depths: Numbers of blocks at which texts are embedded, in one pass; 0 is the
            embedding layer. Vectors are then [N, len(depths), D].
        clip_dims: Dimensions of hidden states that are set to 0 before they are pooled,
            such as outliers (Luo et al. 2021).
        batch_tokens: As in `choose_batch_sizes`.
        mesh: Mesh over whose batch axes rows are spread, and over whose 'model' axis
            the parameters are split; None for the default device.
        allow_empty: Whether a text may be empty: its special tokens and its prompt are
            then embedded, as sentence-transformers does.

    Raises:
        ValueError: The encoder has no such depth, dim, pooling, length, layer or
            blocks, or two of the arguments exclude each other.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        *,
        depth: int | None = None,
        dim: int | None = None,
        pool: str | None = None,
        prompt: Prompt | None = None,
        layers: tuple[int, ...] = (-1,),
        prepend: tuple[int, int] | None = None,
        bidirectional: bool | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        chunk: Chunking | None = None,
        transform: VectorTransform | None = None,
        token_transform: str = "",
        depths: Sequence[int] | None = None,
        clip_dims: Sequence[int] = (),
        batch_tokens: int | None = None,
        mesh: Mesh | None = None,
        allow_empty: bool = False,
    ):
        model = describe_model(model, dim, pool, prompt, normalize, transform)
        check_kind(model, chunk, depths, token_transform)
        # The vectors of muvera have their own similarity
        if has_one_vector(token_transform):
            model = model._replace(similarity="dot")
        self.token_transform = token_transform
        self._transform_tokens = parse_token_transform(
            token_transform, model.transformed_width
        )
        # Texts as the pooling, which is parsed once, has them
        self._kind = model.kind
        self._has_query_pooling = has_query_pooling(parse_pooling(model.pool))
        self.model, self.chunk = model, chunk
        if model.quantizer is not None:
            check_quantizer(model, self.width)
        self._allow_empty = allow_empty
        # The encoder, cut to the blocks that are needed.
        params, cfg = model.params, model.config
        cfg = apply_prompt(cfg, model.prompt, model.tokenizer)
        if bidirectional is not None:
            cfg = dataclasses.replace(cfg, causal=not bidirectional)
        if depth is not None:
            params, cfg = truncate_depth(params, cfg, depth)
        blocks, states = None, None
        if prepend is not None:
            blocks = prepend_blocks(prepend, cfg.depth)
        if depths is not None:
            params, cfg = truncate_to_depths(params, cfg, depths, layers)
        elif tuple(layers) != (-1,):
            states = hidden_state_indices(tuple(layers), cfg.depth)
            deepest = max(1, *(min(state, cfg.depth) for state in states))
            params, cfg = truncate_depth(params, cfg, deepest)
        # Tokenization: the maximum lengths of texts, and their prompts.
        self._text_length, self._document_length = choose_lengths(
            model.max_length, cfg.max_len, max_length, chunk
        )
        if model.prompt is None:
            self._tokenize = make_plain_tokenize(
                model.tokenizer, self._text_length, model.prompts, allow_empty
            )
        else:
            pst_id = cfg.vocab_size if has_pst(model.prompt) else None
            self._tokenize = make_template_tokenize(
                model.prompt, model.tokenizer, self._text_length, pst_id, allow_empty
            )
        self._vocab_size = cfg.vocab_size
        # <PST> is a new row of the token table.
        if has_pst(model.prompt):
            params, cfg = add_token(params, cfg, jax.random.key(0))
        elif prepend is not None:
            raise ValueError(f"token prepending needs a prompt with the token {PST}")
        # The compiled encoders, one per adapter.
        self._max_len = cfg.max_len
        self._sizes = choose_batch_sizes(cfg.max_len, batch_tokens, mesh)
        self._row_encoders = make_row_encoders(
            params,
            cfg,
            model.pool,
            mesh=mesh,
            num_adapters=len(model.adapters),
            dense=model.dense,
            blocks=None if blocks is None else blocks[: cfg.depth],
            depths=None if depths is None else tuple(depths),
            layers=states,
            clip_dims=check_clip_dims(clip_dims, cfg.width),
        )
        if chunk is not None:
            self._chunk_encoders = self._make_chunk_encoders(chunk)

    @property
    def kind(self) -> str:
        """The kind of the embeddings of documents (`similarity.embedding_kind`)."""
        is_cut = self.chunk is not None and not self.chunk.one_vector_per_text
        if has_one_vector(self.token_transform):
            return "dense"
        return "multi_vector" if is_cut else self._kind

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        vector = np.zeros((1, self.model.full_width), np.float32)
        text = to_multi_vectors(self._finish(vector, str))
        return get_width(self._transform_tokens(text, "query"))

    def __call__(
        self,
        texts: Sequence[str],
        role: str,
        *,
        label: Callable[[int], str] = "text {}".format,
    ) -> Embeddings:
        """Embeds texts for a role, "query" or "document".

        Args:
            texts: N texts.
            role: "query" or "document".
            label: Function from the index of a text to its name in error messages.

        Returns:
            [N, D] float32, or `MultiVectors` of tokens, if the pooling keeps them, or
            of documents in chunks. The chunking pcw averages the windows of a document
            and returns [N, D]. A sparse pooling gives a SciPy CSR array [N, V].

        Raises:
            ValueError: There are no texts, one has no tokens or one that the model
                does not have, or a vector is not finite.
        """
        return self.encode(self.tokenize(texts, role, label=label))

    def tokenize(
        self,
        texts: Sequence[str],
        role: str,
        *,
        label: Callable[[int], str] = "text {}".format,
    ) -> TokenizedTexts:
        """The first half of a call, without the device; arguments as there."""
        if not len(texts):
            raise ValueError("there are no texts to embed")
        if self.chunk is None or role != "document":
            rows = self._tokenize(texts, role, label)
            for part in rows:
                self._check_token_ids(part, label)
            return TokenizedTexts(role, rows, label)
        chunked = split_texts(
            self.model.tokenizer,
            texts,
            self.chunk,
            encoder_max_len=self._max_len,
            max_length=self._document_length,
            prompt=self.model.prompts.get("document", ""),
            allow_empty=self._allow_empty,
            label=label,
        )
        rows = make_chunk_rows(chunked)
        # [R] the text of each row
        numbers = np.repeat(np.arange(len(texts)), [len(text.rows) for text in chunked])
        self._check_token_ids(rows, lambda row: label(int(numbers[row])))
        return TokenizedTexts(role, [rows], label, chunked)

    def _check_token_ids(self, rows: TokenRows, label: Callable[[int], str]) -> None:
        check_token_ids(rows, self.model.tokenizer, self._vocab_size, label)

    def encode(self, tokenized: TokenizedTexts) -> Embeddings:
        """The second half of a call: from the tokens to the embeddings."""
        if tokenized.chunked is not None:
            return self._encode_chunks(tokenized)
        encoder = self._select(self._row_encoders, tokenized.role)
        encode, label = partial(self._encode, encoder), tokenized.label
        if self._kind != "dense":
            (rows,) = tokenized.rows  # of a single template
            if self._kind == "sparse":
                return encode_sparse(encode, rows, self._finish, label)
            special = np.concatenate(enclosing_tokens(self.model.tokenizer))
            texts = group_tokens(encode(rows), rows, self._finish, label, special)
            return self._transform_tokens(texts, tokenized.role)
        # [N, D] vectors for each template, averaged over templates.
        vectors = [encode(rows) for rows in tokenized.rows]
        vectors = np.mean(vectors, axis=0) if vectors[1:] else vectors[0]
        return self._finish(vectors, label)

    def _encode_chunks(self, tokenized: TokenizedTexts) -> Embeddings:
        """Embeds documents that are cut into chunks."""
        # [P, D] vectors of pieces of chunks, then [C, D] vectors of chunks.
        encoder = self._select(self._chunk_encoders, tokenized.role)
        pieces = self._encode(encoder, tokenized.rows[0])
        vectors = average_pieces(pieces, tokenized.chunked)
        # The windows of pcw have been through the dense layers; other chunks have not.
        if self.chunk.one_vector_per_text:
            return self._finish(vectors, tokenized.label)
        vectors = np.asarray(project(self.model.dense, vectors))
        chunks = make_chunk_embeddings(vectors, tokenized.chunked)
        numbers = chunks.text_numbers
        return chunks._replace(
            vectors=self._finish(vectors, lambda i: tokenized.label(int(numbers[i])))
        )

    def _encode(self, encoder: RowEncoder, rows: TokenRows) -> np.ndarray:
        """The pooled vectors of token rows, before `_finish`."""
        return encode_rows(
            rows,
            self._sizes,
            encoder,
            encoder.encode_prefix if encoder.can_share_prefix else None,
            pools_last_token=encoder.pool == "last",
            keeps_tokens=self._kind not in ONE_VECTOR_KINDS,
        )

    def _finish(self, vectors: np.ndarray, label: Callable[[int], str]) -> np.ndarray:
        """Truncates, transforms and normalizes vectors [N, ..., D], in this order.

        Raises:
            ValueError: A vector is not finite; `label` names its text.
        """
        vectors = vectors[..., : self.model.dim]
        if self.model.transform is not None:
            vectors = self.model.transform.apply_maps(vectors)
        check_finite(vectors, label)
        if self.model.normalize:
            vectors = l2_normalize_rows(vectors)
        return np.asarray(vectors, np.float32)

    def _select(self, encoders: Sequence[RowEncoder], role: str) -> RowEncoder:
        """The encoder whose adapter has the name of the role, or else the first one."""
        adapters = self.model.adapters
        encoder = encoders[adapters.index(role) if role in adapters else 0]
        # Of most poolings, queries and documents share a program
        as_queries = self._has_query_pooling and role == "query"
        return dataclasses.replace(encoder, as_queries=as_queries)

    def _make_chunk_encoders(self, chunk: Chunking) -> list[RowEncoder]:
        """Encoders for rows of chunks, with their own pooling and no dense layers.

        Dense layers are applied after the pieces of a chunk are averaged.
        """
        check_row_length(chunk, self._max_len)
        if chunk.span_pooling and isinstance(
            parse_pooling(self.model.pool), LearnedPooling
        ):
            raise ValueError(
                f"chunking {chunk.name} pools token states by itself, but the model's "
                f"pooling {self.model.pool} has parameters"
            )
        changes = {"pool": chunk.span_pooling or self.model.pool}
        if not chunk.one_vector_per_text:
            changes["dense"] = ()
        return [dataclasses.replace(e, **changes) for e in self._row_encoders]
