"""An Embax embedder as a model of the `mteb` benchmark package.

Muennighoff et al. 2023, "MTEB: Massive Text Embedding Benchmark" (arXiv:2210.07316).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from research.types import EmbedFn, Evaluator


def mteb_evaluator(tasks: Sequence[Any], *, similarity: str = "cosine") -> Evaluator:
    """An evaluator of mteb tasks; mteb downloads their data from the hub.

    Args:
        tasks: Names of tasks, such as "STS12", or task objects of mteb.
        similarity: How vectors are compared, as in `EmbeddingModel`.

    Returns:
        embed -> {"main_score", task: its main score} in percent; the main score is the
        mean over tasks.

    Raises:
        ValueError: `mteb` is not installed, or has no such task.
    """
    try:
        import mteb
    except ImportError:
        raise ValueError("tasks of mteb need the package: pip install mteb") from None
    # Names to task objects.
    names = [task for task in tasks if isinstance(task, str)]
    try:
        task_objects = [*mteb.get_tasks(tasks=names)] if names else []
    except KeyError as error:
        message = error.args[0].removeprefix("KeyError: ")
        raise ValueError(f"mteb has no such task: {message}") from None
    task_objects += [task for task in tasks if not isinstance(task, str)]
    if not task_objects:
        raise ValueError("mteb needs the name of a task, such as STS12")

    def evaluate(embed: EmbedFn) -> dict[str, float]:
        dim = np.asarray(embed(["a text"], "query")).shape[1]
        model = make_mteb_model(
            embed,
            name="embax/model",
            revision="none",
            dim=dim,
            similarity=similarity,
        )
        # Results are not cached, since all our models have the same name in mteb.
        results = mteb.evaluate(model, task_objects, cache=None)
        scores = {
            result.task_name: 100 * float(result.get_score())
            for result in results.task_results
        }
        return {"main_score": float(np.mean(list(scores.values()))), **scores}

    return evaluate


def make_mteb_model(
    embed: EmbedFn,
    *,
    name: str,
    revision: str,
    dim: int,
    max_length: int | None = None,
    similarity: str = "cosine",
):
    """A model for `mteb.evaluate(model, tasks)`; needs `mteb` and torch.

    The texts of a task are embedded in one call, so that the embedder can batch them by
    length. The data sets of LongEmbed are `mteb.get_tasks(tasks=[...])` with
    LEMBNarrativeQARetrieval, LEMBQMSumRetrieval, LEMBSummScreenFDRetrieval,
    LEMBWikimQARetrieval, LEMBPasskeyRetrieval and LEMBNeedleRetrieval; mteb downloads
    them from the hub.

    Args:
        embed: Function (texts, role) -> [N, D].
        name: "organization/model", under which mteb stores results.
        revision: Name of the checkpoint of the model.
        dim: D, width of the embeddings.
        max_length: Maximum number of tokens of a text; None if unknown.
        similarity: How vectors are compared, as in `EmbeddingModel`.
    """
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    class MtebModel(AbsEncoder):
        mteb_model_meta = ModelMeta(
            **_model_meta(name, revision, dim, max_length, similarity)
        )

        def encode(self, inputs, *, prompt_type=None, **kwargs) -> np.ndarray:
            # All texts in one call.
            texts = [text for batch in inputs for text in batch["text"]]
            is_document = prompt_type == PromptType.document
            return embed(texts, "document" if is_document else "query")

    return MtebModel()


def _model_meta(
    name: str, revision: str, dim: int, max_length: int | None, similarity: str
) -> dict[str, Any]:
    # ModelMeta requires all of its fields.
    unknown = (
        "loader",
        "release_date",
        "languages",
        "n_parameters",
        "memory_usage_mb",
        "license",
        "open_weights",
        "public_training_code",
        "public_training_data",
        "use_instructions",
        "training_datasets",
    )
    return {
        **dict.fromkeys(unknown),
        "name": name,
        "revision": revision,
        "max_tokens": max_length,
        "embed_dim": dim,
        "framework": ["JAX"],
        "similarity_fn_name": similarity,
    }
