"""`EmbeddingModel`: the parameters of an encoder and how it embeds texts."""

from typing import NamedTuple

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
        params: The encoder's parameters, as `encoder.init` makes them.
        config: The encoder's shape.
        tokenizer: The tokenizer, without padding or truncation.
        pool: The pooling, as `parse_pooling` reads it, such as "mean".
        max_length: Number of tokens of the longest text, special tokens included.
        prompts: The text before each text, for the roles "query" and "document".
        normalize: Whether embeddings are scaled to length 1.
        dense: Layers that the pooled vector goes through.
        dims: The widths that the model was trained at; empty if unknown.
        dim: Number of leading values of the vector that are kept before it is
            normalized; None keeps all.
        prompt: The templates that texts are put into; None puts `prompts` before them.
        dropped: Other parts that were trained with the encoder and are not part of the
            model, such as 'decoder (443,904 parameters)'.
        adapters: The names of the adapters in `params`, in their order; a text goes
            through the one that is named like its role, or else through the first.
        base: Name of the model that the training started from; '' if unknown.
        head: Parameters of the head that predicts tokens from hidden states, as
            `heads.init_head` makes them; None without a head.
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
        """Number of values of an embedding."""
        return self.full_width if self.dim is None else self.dim

    @property
    def full_width(self) -> int:
        """Number of values of an embedding of which all are kept."""
        if self.dense:
            return self.dense[-1].kernel.shape[1]
        return registry.pooled_width(self.pool, self.config)


def merge_adapter(model: EmbeddingModel, name: str | None = None) -> EmbeddingModel:
    """The model with one of its adapters added to its kernels, and no adapters left.

    Args:
        model: A model with adapters.
        name: Name of the adapter; None for the only one.

    Raises:
        ValueError: The model has no adapter of that name, or several and no name.
    """
    params = lora.merge_lora(model.params, _adapter_number(model, name))
    return model._replace(params=params, adapters=())


def select_adapter(model: EmbeddingModel, name: str | None = None) -> EmbeddingModel:
    """The model with one of its adapters beside its kernels; as `merge_adapter`."""
    number = _adapter_number(model, name)
    return model._replace(
        params=lora.select_adapter(model.params, number),
        adapters=(model.adapters[number],),
    )


def _adapter_number(model: EmbeddingModel, name: str | None) -> int:
    known = ", ".join(model.adapters) or "none"
    if name is None and len(model.adapters) != 1:
        raise ValueError(f"one adapter of the model must be named; it has {known}")
    if name is not None and name not in model.adapters:
        raise ValueError(f"the model has no adapter {name!r}; it has {known}")
    return 0 if name is None else model.adapters.index(name)
