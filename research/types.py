"""The few types that every part of the library passes around."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

# Names operations over the vocabulary, in profiles and where a step is priced.
VOCABULARY = "vocabulary"
Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
Metrics = Mapping[str, Array]


class Tokens(NamedTuple):
    """A batch of rows of tokens; a row holds one text, or several packed end to end.

    Attributes:
        ids: [B, S] int32 token ids.
        segment: [B, S] int32; 0 is padding, m >= 1 the m-th text of the row.
        pool: [B, S] bool, tokens that count in pooling (instructions are left out).
        adapter: [B, S] int32, the number of the adapter that each token goes through,
            -1 for none; None for the first one, if there is any.
    """

    token_ids: Array
    segment_ids: Array
    pooling_mask: Array
    adapter_ids: Array | None = None


def max_segments(length: int) -> int:
    """Texts that fit in a packed row of `length` tokens: one for every 8 tokens."""
    return max(1, length // 8)


class PretrainingBatch(NamedTuple):
    """The batch of a pre-training step: packed rows, nothing masked yet.

    Attributes:
        tokens: Tokens [R, S]; every text has its own special tokens.
        word: [R, S] int32, 1 + the number of the word of its row that a token belongs
            to; 0 for special tokens and padding.
    """

    tokens: Tokens
    word_ids: Array


def max_documents(length: int) -> int:
    """Documents that fit in a pre-training row of `length` tokens: one for every 16."""
    return max(1, length // 16)


class TokenizerInfo(NamedTuple):
    """What pre-training needs to know of a tokenizer.

    Attributes:
        vocab: how many token ids there are.
        mask_id: the id of [MASK]; None where there is none.
        special: the ids of special tokens, never put in place of another.
        counts: [vocab] how often each token occurs in the data; None if unknown.
        blank: the id of "_", which stands for a mask where there is none; None without.
        end: the id of the token that ends a text; None without.
        shortest: the fewest tokens of a text, its special ones included.
    """

    vocab_size: int
    mask_id: int | None
    special_ids: tuple[int, ...]
    token_counts: Any = None
    blank_id: int | None = None
    end_id: int | None = None
    min_length: int = 1


class Labels(NamedTuple):
    """What the data says about the pairs of a batch; a field that is unknown is None.

    Attributes:
        score: [B] graded similarity, or [B, K] teacher scores of a query's documents.
        query_id: [B, 2] uint32 halves of a 64-bit hash of the query's text (or of the
            group that the pair belongs to): equal ids are never each other's negatives.
        document_id: [B*K, 2] uint32, the same for the documents' texts.
    """

    score: Array | None = None
    query_id: Array | None = None
    document_id: Array | None = None


class Batch(NamedTuple):
    """One step's texts, queries and documents packed together in the same rows.

    Attributes:
        tokens: Tokens with rows [R, S]; the encoder makes R * slots(S) vectors of them.
        query: [B] int32, which of these vectors is query i.
        document: [B*K] int32; row i*K is query i's positive, the next K-1 its hard
            negatives.
        labels: what is known about the pairs.
    """

    tokens: Tokens
    query_index: Array
    document_index: Array
    labels: Labels


class ChunkEmbeddings(NamedTuple):
    """The embeddings of texts that are cut into chunks, text after text.

    Attributes:
        vectors: [C, D] float32 numpy array.
        document: [C] which text a chunk is of; each has at least one.
        start, end: [C] its characters, text[start:end].
    """

    vectors: Any
    document_numbers: Any
    start: Any
    end: Any


class EncoderOutput(NamedTuple):
    """What the encoder computes.

    Attributes:
        tokens: [B, S, D] final hidden states.
        layers: [L+1, B, S, D] the embedding layer's output and every block's, each
            after the final norm where the family has one; None unless asked for.
    """

    hidden_states: Array
    layers: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
        step: [] int32, the number of updates made.
        params: what is trained.
        frozen: what is not: base weights under LoRA, a teacher's weights, running
            statistics.
        opt_state: the optimizer's moments.
    """

    step: Array
    params: Params
    frozen: Params
    opt_state: optax.OptState


# pool(tokens [B, S, D], mask [B, M, S]) -> [B, M, D], a vector for each text of a row.
Pool = Callable[[Array, Array], Array]
# encode(params, tokens [R, S], key) -> [R*M, ...], the vectors of the rows' M texts.
Encode = Callable[[Params, Tokens, Key | None], Array]
# embed(texts, role) -> [N, D] float32, role "query" or "document"; Chunks of documents
# from an embedder that cuts them.
EmbedFn = Callable[[Any, str], Any]


class SizeLoss(NamedTuple):
    """A loss over the sizes of an elastic model.

    Attributes:
        loss: (q [B, L+1, D], d [B*K, L+1, D], labels, key) -> ([B], metrics) if `deep`,
            else (q [B, D], d [B*K, D], labels, key) -> ([B], metrics). Index l of the
            depth axis is the pooled output of block l, 0 the embedding layer's.
        deep: whether the loss wants every layer's embedding, or only the last one's.
    """

    loss: Callable[[Array, Array, Labels, Key], tuple[Array, Metrics]]
    needs_all_layers: bool


class LossOutput(NamedTuple):
    """The result of an objective's loss.

    Attributes:
        value: [] float32, what is minimized.
        metrics: name -> [] float32.
        frozen: the frozen parameters after the step, where running statistics are part
            of them; None leaves them unchanged.
    """

    value: Array
    metrics: Metrics
    frozen: Params | None = None


class Objective(NamedTuple):
    """A training objective: two pure functions, like optax.GradientTransformation.

    Attributes:
        init: (key, encoder_params=None) -> (trained parameters, frozen parameters).
            `encoder_params` are those of an encoder that is trained on; None starts
            from random ones.
        loss: (params, frozen, batch, key) -> LossOutput.
    """

    init: Callable[..., tuple[Params, Params]]
    loss: Callable[[Params, Params, Any, Key], LossOutput]


Evaluator = Callable[[EmbedFn], dict[str, float]]


class ModelEvaluator(NamedTuple):
    """An evaluator of the model itself, not of its embeddings.

    Attributes:
        evaluate: (params, cfg, tokenizer, max_length, mesh) -> scores.
    """

    evaluate: Callable[..., Mapping[str, float]]
