"""An Embax embedder as a model of the `mteb` benchmark package.

Muennighoff et al. 2023, "MTEB: Massive Text Embedding Benchmark" (arXiv:2210.07316).
"""

from typing import Any

import numpy as np

from research.types import EmbedFn


def make_mteb_model(
    embed: EmbedFn, *, name: str, revision: str, dim: int, max_length: int
):
    """A model for `mteb.evaluate(model, tasks)`; needs `mteb` and torch.

    The texts of a task are embedded in one call, so that the embedder can batch them by
    length. LongEmbed's own sets are `mteb.get_tasks(tasks=[...])` with
    LEMBNarrativeQARetrieval, LEMBQMSumRetrieval, LEMBSummScreenFDRetrieval,
    LEMBWikimQARetrieval, LEMBPasskeyRetrieval and LEMBNeedleRetrieval; mteb downloads
    them from the hub.

    Args:
        embed: (texts, role) -> [N, D].
        name: "organization/model", the folder in which mteb keeps results.
        revision: Distinguishes the checkpoints of a model.
        dim: D.
        max_length: Maximum length of a text in tokens.
    """
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    class MtebModel(AbsEncoder):
        mteb_model_meta = ModelMeta(**_model_meta(name, revision, dim, max_length))

        def encode(self, inputs, *, prompt_type=None, **kwargs) -> np.ndarray:
            texts = [text for batch in inputs for text in batch["text"]]
            is_document = prompt_type == PromptType.document
            return embed(texts, "document" if is_document else "query")

    return MtebModel()


def _model_meta(name: str, revision: str, dim: int, max_length: int) -> dict[str, Any]:
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
        "similarity_fn_name": "cosine",
    }
