"""The content of a run's model.json: how the trained model embeds."""

from collections.abc import Mapping
from typing import Any

from research.config_sections import format_call
from research.data.sources import Source
from research.experiment.initialization import Initialization, combine_prompts
from research.models.config import EncoderConfig
from research.models.pooling.registry import pooled_width
from research.models.positions.methods import config_fields
from research.objectives.tuning import is_partial


def make_model_card(
    config,
    base_encoder: EncoderConfig,
    encoder: EncoderConfig,
    sources: Mapping[str, Source],
    initialization: Initialization | None,
) -> dict[str, Any]:
    """The content of model.json.

    Args:
        config: The config of the run.
        base_encoder: The encoder before its context is extended.
        encoder: The encoder.
        sources: Sources by their names.
        initialization: What the run takes from a model; None without one.
    """
    # A model with extended context embeds texts up to its new length
    extended = encoder.max_len > base_encoder.max_len
    return {
        "encoder": config_fields(encoder),
        "pool": format_call(config.pool),
        "max_length": encoder.max_len if extended else config.max_length,
        "prompts": combine_prompts(sources, initialization),
        "default_prompt": initialization.default_prompt if initialization else "",
        "prompt": format_call(config.prompt),
        "head": _find_activation(config) if _keeps_head(config) else "",
        "normalize": config.normalize,
        "similarity": config.similarity if "similarity" in config else "cosine",
        "special_tokens": dict(initialization.special_tokens) if initialization else {},
        "dims": _trained_dims(config),
        "partial": is_partial(config.tuning.name),
        "adapters": list_adapters(config),
        "base": config.init_from,
    }


def _keeps_head(config) -> bool:
    """Whether the trained model embeds with the objective's head."""
    return "keep_head" in config.objective and config.objective.keep_head


def _find_activation(config) -> str:
    """The activation of the objective's head, as a dense layer names it."""
    return "identity" if config.objective.head == "linear" else config.objective.head


def trained_width(config, encoder: EncoderConfig) -> int:
    """The width of the vectors that the loss gets: the head's or the pooling's."""
    if "head_width" in config.objective and config.objective.head_width:
        return config.objective.head_width
    return pooled_width(format_call(config.pool), encoder)


def find_projection(config) -> int:
    """The width of what is compared with a teacher's vectors; 0 for the embeddings."""
    has_option = "projection_width" in config.objective
    return config.objective.projection_width if has_option else 0


def embedding_width(config, encoder: EncoderConfig) -> int:
    """The width of the trained model's embeddings, with the head if it is kept."""
    if _keeps_head(config):
        return trained_width(config, encoder)
    return pooled_width(format_call(config.pool), encoder)


def list_adapters(config) -> list[str]:
    """The names of the trained adapters, in order; empty without adapters.

    Raises:
        ValueError: There are several adapters, but the objective trains on rows of text
            rather than pairs.
    """
    if "adapters" not in config.tuning:
        return []
    names = list(config.tuning.adapters)
    if len(names) > 1 and "row_layout" in config:
        raise ValueError(
            f"tuning.adapters names {', '.join(names)}, but {config.objective.name} "
            "reads rows of text, which go through one adapter"
        )
    return names


def _trained_dims(config) -> list[int]:
    """The widths that the loss trains, in descending order."""
    sizes = config.objective if "row_layout" in config else config.size_loss
    # Widths of Matryoshka losses, and of (depth, dim) pairs
    dims = set(sizes.dims) if "dims" in sizes else set()
    if "pairs" in sizes:
        dims |= {int(dim) for _, dim in sizes.pairs}
    return sorted(dims, reverse=True)
