"""An Embax embedder as a model of the `mteb` benchmark package.

Muennighoff et al. 2023, "MTEB: Massive Text Embedding Benchmark" (arXiv:2210.07316).
"""

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.types import EmbedFn

# Fields of mteb's ModelMeta that must be there, and are not known of any model. They
# are filled in when results are submitted to the leaderboard.
UNKNOWN_FIELDS = (
    "loader",
    "release_date",
    "languages",
    "memory_usage_mb",
    "license",
    "open_weights",
    "public_training_code",
    "public_training_data",
    "training_datasets",
)
LOADER_BATCH_SIZE = 1_024  # texts that mteb hands over at a time


def check_mteb() -> None:
    """Raises ValueError with the way to install it if mteb cannot run."""
    missing = [n for n in ("mteb", "torch") if importlib.util.find_spec(n) is None]
    if missing:
        raise ValueError(
            f"--task=mteb needs the package {missing[0]}, which is not installed: "
            "pip install mteb"
        )


def find_mteb_tasks(names: Sequence[str], benchmark: str = "") -> list[Any]:
    """mteb's tasks by their names, or those of a benchmark.

    Args:
        names: Names of tasks, such as "STS12".
        benchmark: Name of a benchmark, such as "MTEB(eng, v2)"; "" for none.

    Raises:
        ValueError: `mteb` is not installed, or has no such task or benchmark.
    """
    check_mteb()
    import mteb

    try:
        tasks = [*mteb.get_tasks(tasks=list(names))] if names else []
        if benchmark:
            tasks += mteb.get_benchmark(benchmark).tasks
    except (KeyError, ValueError) as error:
        message = str(error.args[0]).removeprefix("KeyError: ")
        raise ValueError(f"mteb has no such task or benchmark: {message}") from None
    return tasks


def make_mteb_model(
    embed: EmbedFn,
    *,
    name: str,
    revision: str,
    dim: int,
    max_length: int | None = None,
    similarity: str = "cosine",
    prompts: Mapping[str, str] | None = None,
    num_params: int | None = None,
    experiment: Mapping[str, Any] | None = None,
):
    """A model for `mteb.evaluate(model, tasks)`; needs `mteb` and torch.

    The texts of a task are embedded in one call, so that the embedder can batch them by
    length and spread them over the devices. Their role is the name of the prompt that
    mteb chooses among those of the model (by task, type of task, query or document);
    texts of symmetric tasks, for which there is none, are embedded as queries.

    Args:
        embed: Function (texts, role) -> [N, D] float32.
        name: "organization/model", under which mteb stores results.
        revision: Name of the checkpoint. mteb takes the stored results of a name and a
            revision for those of the model.
        dim: D, width of the embeddings.
        max_length: Maximum number of tokens of a text; None if unknown.
        similarity: How vectors are compared, as in `EmbeddingModel`.
        prompts: The model's prompts by role, as in `EmbeddingModel`.
        num_params: Number of parameters; None if unknown.
        experiment: Options of the embedder that differ from the model's own, such as
            {"depth": 6}; mteb stores their results in a folder of their own.
    """
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
    from mteb.types import PromptType

    # What mteb stores beside the results.
    meta = ModelMeta(
        **dict.fromkeys(UNKNOWN_FIELDS),
        name=name,
        revision=revision,
        n_parameters=num_params,
        max_tokens=max_length,
        embed_dim=dim,
        framework=["JAX"],
        similarity_fn_name=similarity,
        use_instructions=any((prompts or {}).values()),
        experiment_kwargs=dict(experiment) if experiment else None,
    )

    class MtebModel(AbsEncoder):
        mteb_model_meta = meta

        def encode(
            self, inputs, *, task_metadata, prompt_type=None, **options
        ) -> np.ndarray:
            # All texts in one call.
            texts = [text for batch in inputs for text in batch["text"]]
            role = get_prompt_name(prompts, task_metadata, prompt_type)
            if role is None:
                is_document = prompt_type == PromptType.document
                role = "document" if is_document else "query"
            return np.asarray(embed(texts, role), np.float32)

    return MtebModel()


def run_mteb(
    model: Any, tasks: Iterable[Any], folder: Path | None, *, reuse: bool = True
) -> Iterator[tuple[Any, float | None, str]]:
    """Runs tasks of mteb one after another; a task that fails stops no other.

    Args:
        model: A model of `make_mteb_model`.
        tasks: Task objects of mteb.
        folder: The folder of mteb's ResultCache; None stores nothing.
        reuse: Whether results of the same model in the folder are not computed again.

    Yields:
        The task, its main score in percent or None, and why it failed or "".
    """
    import mteb

    # Errors are yielded; mteb would also print them.
    logging.getLogger("mteb.evaluate").setLevel(logging.CRITICAL)
    # One call for each task, so that its row is there as soon as it is done.
    cache = None if folder is None else mteb.ResultCache(folder)
    for task in tasks:
        result = mteb.evaluate(
            model,
            [task],
            cache=cache,
            encode_kwargs={"batch_size": LOADER_BATCH_SIZE},
            raise_error=False,
            overwrite_strategy="only-missing" if reuse else "always",
            co2_tracker=False,
            show_progress_bar=False,
        )
        if result.exceptions:
            error = " ".join(str(result.exceptions[0].exception).split())
            yield task, None, error or "it failed without a message"
        else:
            yield task, 100 * float(result.task_results[0].get_score()), ""
