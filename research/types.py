"""Shared types: batches, labels, encoder output, training state, objectives.

Shapes: B queries, K documents per query, R rows, S tokens of a row, M texts of a row,
D the width of an embedding, L blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

# `jax.named_scope` of operations over the vocabulary; profiles and the dry run use it
# to attribute their cost.
VOCABULARY = "vocabulary"
Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
Metrics = Mapping[str, Array]


class Tokens(NamedTuple):
    """Rows of tokens; a row holds one text, or several packed one after the other.

    Attributes:
        token_ids: [R, S] int32 token ids.
        segment_ids: [R, S] int32; 0 for padding, m >= 1 for the m-th text of the row.
        pooling_mask: [R, S] bool, whether a token is pooled (tokens of an instruction
            are not).
        adapter_ids: [R, S] int32 index of the LoRA adapter applied to each token, -1
            for none; None if all tokens use the first adapter, or there is none.
    """

    token_ids: Array
    segment_ids: Array
    pooling_mask: Array
    adapter_ids: Array | None = None


def max_segments(length: int) -> int:
    """M, the most texts in a packed row of a contrastive batch: one for every 8 tokens.

    The packer respects this limit, and the encoder returns M vectors for every row.
    """
    return max(1, length // 8)


class PretrainingBatch(NamedTuple):
    """Rows of a pre-training step, before any token is masked.

    Attributes:
        tokens: Tokens of R rows; every text has its own special tokens.
        word_ids: [R, S] int32, the word of its row that a token belongs to, counted
            from 1; 0 for special tokens and padding.
    """

    tokens: Tokens
    word_ids: Array


def max_documents(length: int) -> int:
    """M, the most documents in a pre-training row: one for every 16 tokens.

    Fewer than `max_segments`: documents are longer than queries, and for each one an
    objective allocates a vector, a buffer of masked tokens or a bag of words.
    """
    return max(1, length // 16)


class TokenizerInfo(NamedTuple):
    """Properties of a tokenizer that pre-training needs.

    Attributes:
        vocab_size: Number of token ids.
        mask_id: Id of [MASK]; None if there is none.
        special_ids: Ids of special tokens; random replacements never use them.
        token_counts: [vocab_size] count of each token in the data; None if unknown.
        blank_id: Id of "_", the mask of tokenizers without [MASK]; None if there is
            none.
        end_id: Id of the token that ends a text; None if there is none.
        min_length: Smallest number of tokens in a text, including special tokens.
    """

    vocab_size: int
    mask_id: int | None
    special_ids: tuple[int, ...]
    token_counts: Any = None
    blank_id: int | None = None
    end_id: int | None = None
    min_length: int = 1


@jax.tree_util.register_static
class LossName(str):
    """Call text of a loss, such as "cosent(scale=20)", in a tree of arrays.

    It is part of the tree's structure: a training step is compiled once for each.
    """


class Labels(NamedTuple):
    """Labels of the pairs of a batch; an unknown field is None.

    Attributes:
        score: [B] graded similarity, or [B, K] teacher scores for a query's documents.
        query_id: [B, 2] uint32, a 64-bit hash of the query's text (or of the pair's
            group) as two halves; pairs with equal ids are never each other's negatives.
        document_id: [B*K, 2] uint32, the same for the documents' texts.
        progress: [B] float32, the part of the run that is done, the same for all pairs.
        draw: [B] uint32, a random number of the run and the step, the same for all
            pairs, as the seed of a loss that draws.
        loss: The loss of the pairs' source; None for that of the config.
        query_vector: [B, E] float32, a teacher's vectors of the queries.
        document_vector: [B*K, E] float32, the same for the documents.
        query_projection: [B, E] the model's own embeddings of the queries, projected to
            be compared with `query_vector`; None for the embeddings themselves.
        document_projection: [B*K, E] the same for the documents.
    """

    score: Array | None = None
    query_id: Array | None = None
    document_id: Array | None = None
    progress: Array | None = None
    draw: Array | None = None
    loss: LossName | None = None
    query_vector: Array | None = None
    document_vector: Array | None = None
    query_projection: Array | None = None
    document_projection: Array | None = None


class TeacherTexts(NamedTuple):
    """The texts of a batch as tokens of a teacher that embeds them within the step.

    Attributes:
        tokens: Tokens of rows; the teacher's tokenizer and lengths are its own.
        query_index: [B] int32 index of each query's vector, as in Batch.
        document_index: [B*K] int32, the same for documents.
    """

    tokens: Tokens
    query_index: Array
    document_index: Array


class Batch(NamedTuple):
    """A contrastive batch: queries and documents packed together in the same rows.

    Attributes:
        tokens: Tokens of R rows, from which the encoder computes R * max_segments(S)
            vectors.
        query_index: [B] int32 index of each query's vector among them.
        document_index: [B*K] int32, the same for documents; entry i*K is query i's
            positive, the next K-1 are its hard negatives.
        labels: Labels of the pairs.
        teacher: The same texts for a teacher; None without one inside the step.
    """

    tokens: Tokens
    query_index: Array
    document_index: Array
    labels: Labels
    teacher: TeacherTexts | None = None


class MultiVectors(NamedTuple):
    """Several vectors per text, of its tokens or chunks, in the order of the texts.

    Attributes:
        vectors: [C, D] float32 NumPy array, the vectors of all texts end to end.
        offsets: [N+1] int64; text i has the vectors offsets[i] ... offsets[i+1] - 1, at
            least one.
        start: [C] offset of the chunk's first character in its text; None for tokens.
        end: [C] offset one past its last character; None for tokens.
        token_ids: [C] id of each token, -1 for special ones; None for chunks.
    """

    vectors: Any
    offsets: Any
    start: Any = None
    end: Any = None
    token_ids: Any = None

    @property
    def count(self) -> int:
        """N, the number of texts."""
        return len(self.offsets) - 1

    @property
    def text_numbers(self) -> Any:
        """[C] index of each vector's text."""
        return np.repeat(np.arange(self.count), np.diff(self.offsets))

    def take_texts(self, numbers: Sequence[int]) -> "MultiVectors":
        """The vectors of some texts, in the order of their numbers."""
        starts, lengths = self.offsets[:-1], np.diff(self.offsets)
        parts = [np.arange(starts[i], starts[i] + lengths[i]) for i in numbers]
        rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        ends = np.cumsum([0, *(lengths[i] for i in numbers)])
        return MultiVectors(
            self.vectors[rows],
            ends,
            *(None if x is None else x[rows] for x in self[2:]),
        )


class EncoderOutput(NamedTuple):
    """Hidden states of the encoder.

    Attributes:
        hidden_states: [R, S, D] final hidden states.
        layers: [L+1, R, S, D] outputs of the embedding layer and of every block, each
            after the final norm if the family has one; None unless requested.
    """

    hidden_states: Array
    layers: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint holds.

    Attributes:
        step: [] int32 number of updates made.
        params: Trained parameters.
        frozen: Parameters that are not trained: base weights under LoRA, a teacher's
            weights, running statistics.
        opt_state: State of the optimizer, an `optax.OptState`.
        average: Average of the trained parameters over some steps; None for none.
    """

    step: Array
    params: Params
    frozen: Params
    opt_state: Any  # importing optax takes a quarter of a second
    average: Params | None = None

    @property
    def model_params(self) -> Params:
        """The parameters that are evaluated and saved as the model's."""
        return self.params if self.average is None else self.average


# pool(tokens [B, S, D], mask [B, M, S]) -> [B, M, D], one vector per text of a row.
Pool = Callable[[Array, Array], Array]
# encode(params, tokens of R rows, key) -> [R*M, ...], the vectors of their M texts.
Encode = Callable[[Params, Tokens, Key | None], Array]
# embed(texts, role) -> [N, D] float32, with role "query" or "document"; MultiVectors
# from an embedder of several vectors per text, or a SciPy CSR array [N, V] from one of
# sparse vectors.
EmbedFn = Callable[[Any, str], Any]


class SizeLoss(NamedTuple):
    """A loss over the sizes of an elastic model.

    Attributes:
        loss: (q [B, D], d [B*K, D], labels, key) -> ([B], metrics), or if
            `needs_all_layers` (q [B, L+1, D], d [B*K, L+1, D], labels, key) -> ([B],
            metrics). Index l of the depth axis is the pooled output of block l; index
            0 is the pooled output of the embedding layer.
        needs_all_layers: Whether the loss takes every layer's embedding, or only the
            last layer's.
    """

    loss: Callable[[Array, Array, Labels, Key], tuple[Array, Metrics]]
    needs_all_layers: bool


class LossOutput(NamedTuple):
    """The result of an objective's loss.

    Attributes:
        value: [] float32 loss to be minimized.
        metrics: name -> [] float32.
        frozen: Updated frozen parameters, if they include running statistics; None
            leaves them unchanged.
    """

    value: Array
    metrics: Metrics
    frozen: Params | None = None


class Objective(NamedTuple):
    """A training objective: two pure functions, like optax.GradientTransformation.

    Attributes:
        init: (key, encoder_params=None) -> (trained parameters, frozen parameters).
            Training starts from `encoder_params`; None starts from random parameters.
        loss: (params, frozen, batch, key) -> LossOutput.
    """

    init: Callable[..., tuple[Params, Params]]
    loss: Callable[[Params, Params, Any, Key], LossOutput]


Evaluator = Callable[[EmbedFn], dict[str, Any]]


class ItemValues(NamedTuple):
    """What a task's main score is computed from, item by item, to compare two models.

    The items are queries, pairs or texts, the same for every model.

    Attributes:
        names: [N] names of the items, such as the ids of queries.
        values: Arrays [N, ...] of the items: one array of their scores, or first the
            predictions and then what is true.
        statistic: Function (*values) -> the main score; it can be applied to resampled
            items, too.
        make_run: Function () -> {query id: {document id: score}}, the rankings of a
            search; None for a task without.
        groups: [N] names of groups of items that depend on each other, such as queries
            about one document; None if all are independent.
    """

    names: Sequence[str]
    values: tuple[Any, ...]
    statistic: Callable[..., float]
    make_run: Callable[[], Mapping[str, Mapping[str, float]]] | None = None
    groups: Sequence[str] | None = None


class TaskScores(dict):
    """Scores of a task by name, and what they are computed from.

    Attributes:
        item_values: ItemValues of the main score; None if it is no function of items.
    """

    item_values: ItemValues | None

    def __init__(self, scores: Mapping[str, Any], item_values: ItemValues | None):
        super().__init__(scores)
        self.item_values = item_values


class ModelEvaluator(NamedTuple):
    """An evaluator of the model itself, not of its embeddings.

    Attributes:
        evaluate: (params, cfg, tokenizer, max_length, mesh) -> scores.
    """

    evaluate: Callable[..., Mapping[str, float]]
