"""A frozen teacher that embeds the texts of every batch within the training step."""

from collections.abc import Callable

import jax

from research import sharding
from research.objectives.contrastive import take_texts
from research.objectives.gradcache import (
    count_chunks,
    count_min_chunks,
    encode_in_chunks,
)
from research.types import (
    Array,
    Batch,
    Key,
    LossOutput,
    Objective,
    Params,
    TeacherTexts,
    Tokens,
)

# Name of the teacher among the frozen parameters.
TEACHER = "teacher"


def add_teacher(
    objective: Objective,
    teacher: Params,
    embed: Callable[[Params, Tokens], Array],
    *,
    micro_batch: int = 0,
) -> Objective:
    """Gives an objective's losses the vectors of a frozen teacher, as labels.

    Args:
        objective: An objective on pairs, whose batches hold the teacher's tokens.
        teacher: Parameters of the teacher; they are kept with the frozen parameters.
        embed: (teacher's parameters, tokens of R rows) -> [R*M, E] vectors of M texts.
        micro_batch: As in `contrastive`, for the teacher's rows.

    Returns:
        An Objective whose frozen parameters are those of `objective` and the teacher's.
    """

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, frozen = objective.init(key, encoder_params)
        return params, {**frozen, TEACHER: teacher}

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> LossOutput:
        others = {name: part for name, part in frozen.items() if name != TEACHER}
        query_vector, document_vector = embed_pairs(
            embed, frozen[TEACHER], batch.teacher, micro_batch
        )
        labels = batch.labels._replace(
            query_vector=query_vector, document_vector=document_vector
        )
        batch = batch._replace(labels=labels, teacher=None)
        output = objective.loss(params, others, batch, key)
        # Running statistics of the objective, beside the teacher
        if output.frozen is not None:
            output = output._replace(frozen={**output.frozen, TEACHER: frozen[TEACHER]})
        return output

    return Objective(init, loss)


def embed_pairs(
    embed: Callable[[Params, Tokens], Array],
    params: Params,
    texts: TeacherTexts,
    micro_batch: int,
) -> tuple[Array, Array]:
    """The vectors of a batch's queries [B, E] and documents [B*K, E], not trained.

    Args:
        embed: (parameters, tokens of R rows) -> [R*M, E] vectors of M texts.
        params: Its parameters.
        texts: Tokens, and the indices of queries and documents.
        micro_batch: Most pairs that each device embeds at a time; 0 for all.
    """

    def encode(params: Params, tokens: Tokens, key: Key | None) -> Array:
        del key
        return jax.lax.stop_gradient(embed(params, tokens))

    devices = sharding.count_batch_devices()
    min_chunks = count_min_chunks(len(texts.query_index), micro_batch, devices)
    chunks = count_chunks(len(texts.tokens.token_ids) // devices, min_chunks)
    vectors = encode_in_chunks(encode, chunks)(params, texts.tokens, None)
    # The pairs of a device are in its own rows
    indices = texts.query_index, texts.document_index
    return sharding.map_over_data(_take_pairs, vectors, *indices, average=False)


def _take_pairs(
    vectors: Array, query_index: Array, document_index: Array
) -> tuple[Array, Array]:
    """The vectors of a device's queries and documents, whose rows are on the device."""
    return take_texts(vectors, query_index), take_texts(vectors, document_index)
