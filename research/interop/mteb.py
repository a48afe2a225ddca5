"""Our embedders as models of the `mteb` benchmark package."""

from typing import Any

import numpy as np

from research.types import EmbedFn


def encoder(embed: EmbedFn, *, name: str, revision: str, dim: int, max_length: int):
    """An mteb model: `mteb.evaluate(encoder(...), tasks)`; needs `mteb` and torch.

    The texts of a task are embedded in one call, so that the embedder can sort them.
    LongEmbed's own sets are `mteb.get_tasks(tasks=[...])` of LEMBNarrativeQARetrieval,
    LEMBQMSumRetrieval, LEMBSummScreenFDRetrieval, LEMBWikimQARetrieval,
    LEMBPasskeyRetrieval and LEMBNeedleRetrieval; mteb downloads them from the hub.

    Args:
        embed: texts, role -> [N, D].
        name: "organisation/model", the folder that mteb keeps results in.
        revision: tells checkpoints of a model apart.
        dim: D.
        max_length: tokens of the longest text.
    """
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    class Encoder(AbsEncoder):
        mteb_model_meta = ModelMeta(**_meta(name, revision, dim, max_length))

        def encode(self, inputs, *, prompt_type=None, **kwargs) -> np.ndarray:
            texts = [text for batch in inputs for text in batch["text"]]
            is_document = prompt_type == PromptType.document
            return embed(texts, "document" if is_document else "query")

    return Encoder()


def _meta(name: str, revision: str, dim: int, max_length: int) -> dict[str, Any]:
    unknown = (
        *("loader", "release_date", "languages", "n_parameters", "memory_usage_mb"),
        *("license", "open_weights", "public_training_code", "public_training_data"),
        *("use_instructions", "training_datasets"),
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
