"""Kinds of embeddings in launch.evaluate: which tasks take them, how they compare."""

from launch import flags as options
from research.eval.tasks.sts import PAIR_SIMILARITIES
from research.inference.model import EmbeddingModel
from research.inference.row_kinds import ROW_KINDS
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
# Tasks of pairs, which do not compare rows of tokens.
PAIR_TASKS = ("sts", "pair_classification")
# Tasks of embeddings of all kinds, not of one vector per text alone.
KIND_TASKS = (*CHUNKED_TASKS, "reranking", *PAIR_TASKS)


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
    if task not in KIND_TASKS:
        check_dense(model, f"--task={task}", f"; {', '.join(KIND_TASKS)} take them")
    if has_one_vector(options.TOKEN_TRANSFORM.value):
        return "dot"
    described = describe_by_flags(model)
    if described.kind in ROW_KINDS and task in PAIR_TASKS:
        pool = ROW_KINDS[described.kind].one_vector
        check_dense(model, f"--task={task}", f': --pool="{pool}" gives one')
    # Pairs are compared in further ways, such as BERTScore
    if similarity is not None and task == "sts":
        if similarity not in PAIR_SIMILARITIES[described.kind]:
            raise ValueError(
                f"--similarity={similarity} does not compare the embeddings of pool "
                f"{described.pool}; allowed: "
                f"{', '.join(PAIR_SIMILARITIES[described.kind])}"
            )
    elif similarity is not None:
        check_kind_similarity(described.pool, similarity)
    return described.similarity


def check_dense(model: EmbeddingModel, reader: str, advice: str = "") -> None:
    """Raises ValueError if a flag or command does not take a model's embeddings.

    Args:
        model: The model.
        reader: The flag or command.
        advice: End of the message.
    """
    # Flags may choose one vector of all tokens
    if has_one_vector(options.TOKEN_TRANSFORM.value):
        return
    kind = describe_by_flags(model).kind
    if kind != "dense":
        raise ValueError(
            f"{reader} needs one vector per text, but those of {options.MODEL.value} "
            f"are {kind.replace('_', '-')}{advice}"
        )


def describe_by_flags(model: EmbeddingModel) -> EmbeddingModel:
    """The model with the pooling of the flags, from which the kind follows."""
    return describe_model(model, None, options.POOL.value, None, None)
