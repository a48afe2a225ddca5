"""What is known of a model, and how it embeds."""

from typing import Any, NamedTuple

from tokenizers import Tokenizer

from research.models import lora
from research.models.config import EncoderConfig
from research.models.pooling import registry
from research.models.pooling.projection import Dense
from research.text.templates import Prompt
from research.types import Params


class EmbeddingModel(NamedTuple):
    """A model and everything that turns a text into its embedding.

    Attributes:
        params: the encoder's tree, as `encoder.init` makes it.
        config: the encoder's shape.
        tokenizer: without padding or truncation.
        pool: such as "mean", or whatever `parse_pooling` reads.
        max_length: the longest text in tokens, special tokens included.
        prompts: what is put before a text, for the roles "query" and "document".
        normalize: whether embeddings are divided by their length.
        dense: layers that the pooled vector goes through.
        dims: the widths that the model was trained at; empty if not known.
        dim: how many leading numbers of the vector are kept, before it is normalised;
            None for all.
        prompt: how texts are put to it; None as they are, after `prompts`.
        dropped: what else was trained with the encoder, and is not part of the model:
            such as 'decoder (443,904 parameters)'.
        adapters: the names of the adapters in `params`, in their order; a text goes
            through the one named like its role, or through the first.
        base: the model that the training began with, by name; '' if not known.
        head: what predicts tokens from states, `heads.init_head`'s; None without.
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
    head: Params | None = None

    @property
    def width(self) -> int:
        """How many numbers the embedding has."""
        if self.dim is not None:
            return self.dim
        if self.dense:
            return self.dense[-1].kernel.shape[1]
        return registry.pooled_width(self.pool, self.config)


def embedder_kwargs(model: EmbeddingModel) -> dict[str, Any]:
    """How the model embeds: the keyword arguments of `embed.make_embedder`."""
    names = ("tokenizer", "pool", "max_length", "prompts", "normalize", "dense", "dim")
    names += ("adapters",) if model.prompt is None else ("adapters", "prompt")
    return {name: getattr(model, name) for name in names}


def adapted(model: EmbeddingModel, name: str | None = None) -> EmbeddingModel:
    """The plain model that one of its adapters makes of it.

    Args:
        model: has adapters.
        name: that of the adapter; None where there is one.

    Raises:
        ValueError: there is none of that name, or several and no name.
    """
    return only(model, name)._replace(
        params=lora.merge_lora(model.params, _number(model, name)), adapters=()
    )


def only(model: EmbeddingModel, name: str | None = None) -> EmbeddingModel:
    """The model with one of its adapters, beside its kernels; as `adapted`."""
    number = _number(model, name)
    return model._replace(
        params=lora.select_adapter(model.params, number),
        adapters=(model.adapters[number],),
    )


def _number(model: EmbeddingModel, name: str | None) -> int:
    known = ", ".join(model.adapters) or "none"
    if name is None and len(model.adapters) != 1:
        raise ValueError(f"one adapter of the model must be named; it has {known}")
    if name is not None and name not in model.adapters:
        raise ValueError(f"the model has no adapter {name!r}; it has {known}")
    return 0 if name is None else model.adapters.index(name)
