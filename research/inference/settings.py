"""The settings of an `Embedder`: the caller's in place of the model's, checked."""

import dataclasses
from collections.abc import Sequence

from tokenizers import Tokenizer

from research.inference.model import EmbeddingModel
from research.inference.row_kinds import ROW_KINDS
from research.inference.similarity import NAMES, SIMILARITIES
from research.models.config import EncoderConfig
from research.models.encoder import truncate_depth
from research.models.pooling.registry import pooled_kind
from research.text.chunking import Chunking
from research.text.templates import Prompt
from research.transforms.pipeline import VectorTransform


def describe_model(
    model: EmbeddingModel,
    dim: int | None,
    pool: str | None,
    prompt: Prompt | None,
    normalize: bool | None,
    transform: VectorTransform | None = None,
) -> EmbeddingModel:
    """The model with the caller's settings in place of its own, checked.

    Args:
        model: The model.
        dim: Number of leading values that are kept; None for the model's own.
        pool: Name of the pooling; None for that of the prompt or the model.
        prompt: Templates for the texts; None for the model's own.
        normalize: Whether vectors are scaled to length 1; None for the model's own.
        transform: What was fitted to the vectors; None for the model's own.
    """
    # The caller's templates replace both the model's templates and its prefixes.
    if prompt is not None:
        model = model._replace(prompt=prompt if prompt.templates else None)
        if prompt.templates:
            model = model._replace(prompts={})
    if model.prompt is not None and any(model.prompts.values()):
        raise ValueError("the model has prompts and templates, which would ignore them")
    # The caller's pooling comes before the prompt's, and that before the model's.
    pool = pool or (model.prompt and model.prompt.pool) or model.pool
    model = model._replace(pool=pool)
    # A leading part of the embedding
    if dim is not None:
        if not 1 <= dim <= model.full_width:
            raise ValueError(f"dim {dim} is not in 1 ... {model.full_width}")
        model = model._replace(dim=dim)
    if normalize is not None:
        model = model._replace(normalize=normalize)
    # Another pooling may give embeddings that are compared otherwise
    names = SIMILARITIES[model.kind]
    if model.similarity in NAMES and model.similarity not in names:
        model = model._replace(similarity=names[0])
    # Rows of tokens are not vectors, which could be cut and scaled
    if model.kind in ROW_KINDS:
        if model.dim is not None and model.dim != model.full_width:
            raise ValueError(f"dim {model.dim} does not go with the pooling {pool}")
        model = model._replace(normalize=False)
    # What was fitted elsewhere takes the place of the model's own
    if transform is not None:
        model = model._replace(transform=transform)
    check_transform(model)
    return model


def check_kind(
    model: EmbeddingModel,
    chunk: Chunking | None,
    depths: Sequence[int] | None = None,
    token_transform: str = "",
) -> None:
    """Checks that a model's kind of vectors, chunks and depths go together.

    Raises:
        ValueError: Documents of several vectors, several depths or a prompt's templates
            are cut into chunks; several templates are averaged; sparse vectors or
            rows are of several depths; or there are no vectors of tokens to transform.
    """
    if token_transform and model.kind != "multi_vector":
        raise ValueError(
            f"{token_transform} is for a vector per token, but those of the pooling "
            f"{model.pool} are {model.kind}"
        )
    if chunk is not None and (model.prompt or depths):
        reason = "the templates of a prompt" if model.prompt else "several depths"
        raise ValueError(f"chunk {chunk} does not go with {reason}")
    if model.kind == "dense":
        return
    # What is defined for one vector per text alone
    if depths is not None and (model.kind != "multi_vector" or token_transform):
        reason = token_transform or f"the pooling {model.pool}"
        raise ValueError(f"several depths do not go with {reason}")
    if chunk is not None:
        raise ValueError(f"chunk {chunk} does not go with the pooling {model.pool}")
    templates = model.prompt.templates.values() if model.prompt else ()
    if any(len(group) > 1 for group in templates):
        raise ValueError(
            f"the vectors of several templates are averaged, but those of {model.pool} "
            "are not: use a prompt of one template"
        )


def check_kind_similarity(pool: str, similarity: str) -> None:
    """Raises ValueError if the embeddings of a pooling are not compared like that."""
    kind = pooled_kind(pool)
    if similarity in NAMES and similarity not in SIMILARITIES[kind]:
        raise ValueError(
            f"similarity is {similarity!r}, but the embeddings of pool {pool} are "
            f"{kind.replace('_', '-')}; allowed: {', '.join(SIMILARITIES[kind])}"
        )


def apply_prompt(
    cfg: EncoderConfig, prompt: Prompt | None, tokenizer: Tokenizer
) -> EncoderConfig:
    """The encoder's shape for a prompt, to some of whose tokens no token attends.

    Raises:
        ValueError: The tokenizer lacks a token of the prompt.
    """
    late = prompt.late_interaction if prompt else None
    token_id = late.find_unattended(tokenizer) if late else -1
    return dataclasses.replace(cfg, unattended_id=token_id)


def check_transform(model: EmbeddingModel) -> None:
    """Raises ValueError if a model's transform is for other vectors."""
    transform = model.transform
    if transform is not None and model.kind in ("sparse", *ROW_KINDS):
        raise ValueError(
            f"the transform {transform.text} does not go with the pooling {model.pool}"
        )
    maps = transform.maps if transform else ()
    if maps and len(maps[0].mean) != model.width:
        raise ValueError(
            f"the transform {transform.text} was fitted to vectors of width "
            f"{len(maps[0].mean)}, not {model.width}"
        )


def check_quantizer(model: EmbeddingModel, width: int) -> None:
    """Raises ValueError if a model's codes are not those of vectors of this width."""
    if model.quantizer is not None and model.quantizer.width != width:
        raise ValueError(
            f"the transform {model.transform.text} was fitted to vectors of width "
            f"{model.quantizer.width}, not {width}"
        )


def truncate_to_depths(params, cfg, depths: Sequence[int], layers: tuple[int, ...]):
    """Cuts the encoder to the largest of the depths, at least one block."""
    if tuple(layers) != (-1,):
        raise ValueError(f"layers {layers} do not go with several depths")
    for depth in depths:
        if not 0 <= depth <= cfg.depth:
            raise ValueError(f"depth {depth} is not in 0 ... {cfg.depth}")
    return truncate_depth(params, cfg, max(*depths, 1))


def check_clip_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """The different dimensions to clip, ascending.

    Raises:
        ValueError: A dimension is not one of the hidden states'.
    """
    for dim in dims:
        if not 0 <= dim < width:
            raise ValueError(
                f"dimension {dim} to clip is not in 0 ... {width - 1} of hidden states"
            )
    return tuple(sorted(set(dims)))


def choose_lengths(
    model_length: int, max_len: int, max_length: int | None, chunk: Chunking | None
) -> tuple[int, int | None]:
    """Maximum numbers of tokens of texts and of chunked documents.

    Args:
        model_length: The model's maximum length of a text.
        max_len: The encoder's maximum length of a row.
        max_length: The caller's choice; None for the model's own.
        chunk: How documents are cut; None if they are not.

    Returns:
        (maximum length of a text, maximum length of a chunked document or None).
    """
    # Chunks in several rows have no maximum length by themselves.
    in_several_rows = chunk is not None and not chunk.reads_full_text
    if max_length is None and not in_several_rows:
        max_length = model_length
    text_length = max_len if max_length is None else max_length
    if in_several_rows:
        text_length = min(text_length, max_len)
    if not 1 <= text_length <= max_len:
        raise ValueError(
            f"max_length {text_length} is not in 1 ... {max_len} of this encoder"
        )
    return text_length, max_length
