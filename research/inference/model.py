"""`EmbeddingModel`: an encoder's parameters, and its settings for embedding texts."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from research.models import lora
from research.models.config import EncoderConfig
from research.models.pooling import registry
from research.models.pooling.projection import Dense
from research.text.templates import Prompt
from research.transforms.pipeline import VectorTransform
from research.transforms.quantization import Quantizer
from research.types import Params


class EmbeddingModel(NamedTuple):
    """An encoder with everything that is needed to embed a text.

    Attributes:
        params: The encoder's parameters, as `encoder.init` makes them.
        config: The encoder's shape.
        tokenizer: The tokenizer, without padding or truncation.
        pool: The pooling, as `parse_pooling` reads it, such as "mean".
        max_length: Maximum number of tokens of a text, special tokens included.
        prompts: Prefix of the texts for each role, "query", "document" and those that
            the model names itself, such as "classification".
        normalize: Whether embeddings are scaled to length 1.
        dense: Linear layers after the pooling.
        dims: The widths that the model was trained at; empty if unknown.
        dim: Number of leading values of the vector that are kept before it is
            normalized; None keeps all.
        prompt: Templates for the texts; None if only `prompts` are put before them.
        dropped: Descriptions of parts that were trained with the encoder but are not
            used for embedding, such as 'decoder (443,904 parameters)'.
        adapters: Names of the adapters in `params`, in their order. A text is embedded
            with the adapter that has the name of its role, or else with the first.
        base: Name of the model from which the training started; '' if unknown.
        similarity: How vectors are compared: "cosine", "dot", "euclidean" or
            "manhattan"; several vectors per text by "maxsim" and its variants
            (`similarity.SIMILARITIES`).
        default_prompt: Name of the prompt for texts without a role, of which we have
            none; "" without one.
        special_tokens: {role of a token in `transformers`, such as "pad_token": token},
            for those that are known.
        head: Parameters of the head that predicts tokens from hidden states, as
            `heads.init_head` makes them; None without a head.
        step: Step of the checkpoint in its run; None for a model of no run.
        transform: What was fitted to the model's vectors, such as a PCA, and how those
            of documents are encoded; None for nothing.
    """

    params: Params
    config: EncoderConfig
    tokenizer: Tokenizer
    pool: str
    max_length: int
    prompts: dict[str, str]
    normalize: bool
    dense: tuple[Dense, ...] = ()
    dims: tuple[int, ...] = ()
    dim: int | None = None
    prompt: Prompt | None = None
    dropped: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    base: str = ""
    similarity: str = "cosine"
    default_prompt: str = ""
    special_tokens: Mapping[str, str] = {}
    head: Params | None = None
    step: int | None = None
    transform: VectorTransform | None = None

    @property
    def kind(self) -> str:
        """The kind of its embeddings, as `LearnedPooling.kind` has it."""
        return registry.pooled_kind(self.pool)

    @property
    def width(self) -> int:
        """Width of an embedding."""
        return self.full_width if self.dim is None else self.dim

    @property
    def transformed_width(self) -> int:
        """Width of an embedding after the linear maps of the transform."""
        maps = self.transform.maps if self.transform else ()
        return maps[-1].width if maps else self.width

    @property
    def quantizer(self) -> Quantizer | None:
        """What encodes the vectors of documents for storage; None if nothing does."""
        return self.transform and self.transform.quantizer

    @property
    def full_width(self) -> int:
        """Width of an embedding before it is truncated to `dim`."""
        # The last dense layer sets the width, or else the pooling.
        if self.dense:
            return self.dense[-1].kernel.shape[1]
        return registry.pooled_width(self.pool, self.config)


def head_layers(head: Params, activation: str) -> tuple[Dense, ...]:
    """The dense layer of a training head {"kernel", "bias"}, for embedding with it."""
    return (Dense(head["kernel"], head["bias"], activation),)


def bake_maps(model: EmbeddingModel) -> EmbeddingModel:
    """The model with the linear maps of its transform as dense layers.

    Its embeddings are the same, and any library that knows dense layers computes them.
    """
    transform = model.transform
    if transform is None or not transform.maps:
        return model
    layers = list(model.dense)
    if model.width < model.full_width:
        layers.append(Dense(np.eye(model.full_width, model.width, dtype=np.float32)))
    for linear in transform.maps:
        bias = -linear.mean @ linear.matrix
        kernel, bias = (np.asarray(x, np.float32) for x in (linear.matrix, bias))
        layers.append(Dense(kernel, bias))
    # The trained widths are not those of the new vectors
    codes = transform.split_quantizer()
    return model._replace(dense=tuple(layers), dim=None, dims=(), transform=codes)


def merge_adapter(model: EmbeddingModel, name: str | None = None) -> EmbeddingModel:
    """Adds one of the model's adapters to its kernels, and removes the adapters.

    Args:
        model: A model with adapters.
        name: Name of the adapter; None for the only one.

    Raises:
        ValueError: The model has no adapter of that name, or several adapters while no
            name is given.
    """
    params = lora.merge_lora(model.params, _adapter_number(model, name))
    return model._replace(params=params, adapters=())


def select_adapter(model: EmbeddingModel, name: str | None = None) -> EmbeddingModel:
    """Removes all adapters but one, unmerged; arguments as in `merge_adapter`."""
    number = _adapter_number(model, name)
    return model._replace(
        params=lora.select_adapter(model.params, number),
        adapters=(model.adapters[number],),
    )


def hash_model(model: EmbeddingModel) -> str:
    """A hash of all that a model's embeddings depend on, before its transform."""
    # Fields at their defaults are left out, so that a new field changes no hash.
    shape = {
        field.name: value
        for field in dataclasses.fields(model.config)
        if (value := getattr(model.config, field.name)) != field.default
    }
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(shape).encode() + model.tokenizer.to_str().encode())
    # How it embeds; a field of a later version at its default changes nothing, either.
    names = ("pool", "max_length", "prompts", "normalize", "dim", "adapters")
    defaults = model._field_defaults
    settings = {name: getattr(model, name) for name in names}
    settings = {n: x for n, x in settings.items() if x != defaults.get(n, ...)}
    if model.prompt is not None:
        # A function's own repr has its address.
        rewrite = model.prompt.rewrite.__qualname__
        settings["prompt"] = model.prompt._replace(rewrite=rewrite)
    digest.update(repr(settings).encode())
    for leaf in jax.tree.leaves((model.params, model.dense)):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _adapter_number(model: EmbeddingModel, name: str | None) -> int:
    known = ", ".join(model.adapters) or "none"  # for error messages
    if name is None and len(model.adapters) != 1:
        raise ValueError(f"one adapter of the model must be named; it has {known}")
    if name is not None and name not in model.adapters:
        raise ValueError(f"the model has no adapter {name!r}; it has {known}")
    return 0 if name is None else model.adapters.index(name)
