"""Evaluation within a run: its model as an embedder, and its scores without one."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from tokenizers import Tokenizer

from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel, head_layers
from research.inference.shares import split_over_processes
from research.models.config import EncoderConfig
from research.models.lora import full_params
from research.text.templates import Prompt
from research.types import EmbedFn, ModelEvaluator, Params


def make_embedder(
    encoder: EncoderConfig,
    tokenizer: Tokenizer,
    prompt: Prompt | None,
    mesh: Mesh,
    card: Mapping[str, Any],
    params: Params,
    frozen: Params,
) -> EmbedFn:
    """Makes an embedder from trained and frozen parameters, for evaluators."""
    parts = full_params(params, frozen)
    trained = EmbeddingModel(
        params=parts["encoder"],
        config=encoder,
        tokenizer=tokenizer,
        pool=card["pool"],
        max_length=card["max_length"],
        prompts=card["prompts"],
        normalize=card["normalize"],
        dense=head_layers(parts["head"], card["head"]) if card["head"] else (),
        similarity=card["similarity"],
        prompt=prompt,
        adapters=tuple(card["adapters"]),
    )
    # Each process embeds its share of the texts
    return split_over_processes(Embedder(trained, mesh=mesh, allow_empty=True))


def measure_model(
    evaluator: ModelEvaluator,
    encoder: EncoderConfig,
    tokenizer: Tokenizer,
    card: Mapping[str, Any],
    mesh: Mesh,
    params: Params,
    frozen: Params,
) -> Mapping[str, float]:
    """Scores of an evaluator that needs the encoder itself, such as perplexity."""
    # The encoder alone, without head and decoder
    encoder_params = full_params(params, frozen)["encoder"]
    return evaluator.evaluate(
        encoder_params, encoder, tokenizer, card["max_length"], mesh
    )
