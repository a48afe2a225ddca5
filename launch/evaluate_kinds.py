"""Kinds of embeddings in launch.evaluate: which tasks take them, how they compare."""

from launch import flags as options
from research.inference.model import EmbeddingModel
from research.inference.settings import check_kind_similarity, describe_model
from research.inference.token_transforms import has_one_vector

# Tasks whose documents may be in chunks.
CHUNKED_TASKS = (
    "retrieval",
    "examples",
    "pydocs_retrieval",
    "pydocs_long",
    "longembed",
)
# Tasks of embeddings of all kinds, not of one vector per text alone.
KIND_TASKS = (*CHUNKED_TASKS, "reranking")


def choose_similarity(
    model: EmbeddingModel, task: str, similarity: str | None = None
) -> str:
    """How the embeddings of a model are compared, by the flags and the model.

    Args:
        model: The model.
        task: The task.
        similarity: What --similarity asks for; None for nothing.

    Raises:
        ValueError: The task does not take embeddings of this kind, or they are not
            compared like that.
    """
    if has_one_vector(options.TOKEN_TRANSFORM.value):
        return "dot"
    # The kind follows from the pooling, which a flag may choose
    described = describe_model(model, None, options.POOL.value, None, None)
    if described.kind != "dense" and task not in KIND_TASKS:
        raise ValueError(
            f"--task={task} needs one vector per text, but those of "
            f"{options.MODEL.value} are {described.kind.replace('_', '-')}; "
            f"{', '.join(KIND_TASKS)} take them"
        )
    if similarity is not None:
        check_kind_similarity(described.pool, similarity)
    return described.similarity


def check_dense(model: EmbeddingModel, reader: str) -> None:
    """Raises ValueError if a flag or command does not take a model's embeddings."""
    # Flags may choose another pooling, or one vector of all tokens
    kind = describe_model(model, None, options.POOL.value, None, None).kind
    if kind != "dense" and not has_one_vector(options.TOKEN_TRANSFORM.value):
        raise ValueError(
            f"{reader} needs one vector per text, but those of {options.MODEL.value} "
            f"are {kind.replace('_', '-')}"
        )
